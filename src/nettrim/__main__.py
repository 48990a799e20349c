"""`python -m nettrim` is the `nettrim` command."""

from nettrim.cli import app

app()
