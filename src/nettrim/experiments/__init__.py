"""The papers' tables and figures, one module an experiment; `run.reproduce` runs one by name."""
