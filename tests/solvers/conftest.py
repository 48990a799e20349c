"""The generator of programs stands beside the tests, and benchmarks/robustness.py uses it too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
