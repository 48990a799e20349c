"""The `nettrim` command, one file a verb."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from nettrim.errors import MissingExtraError

if find_spec("typer") is not None and find_spec("rich") is not None:
    from nettrim.cli.verbs import app as app
else:  # pragma: no cover - needs an installation without the extra

    def app() -> None:
        """Say what to install."""
        print(f"nettrim: {MissingExtraError('typer', 'cli')}", file=sys.stderr)
        sys.exit(2)
