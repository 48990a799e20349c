"""The `nettrim` command, one file a verb."""

from __future__ import annotations

import sys

from nettrim.errors import MissingExtraError

try:
    from nettrim.cli.verbs import app as app
except ModuleNotFoundError as error:
    if error.name not in ("typer", "rich"):
        raise
    _missing = MissingExtraError(error.name, "cli")

    def app() -> None:  # type: ignore[misc]
        """Say what to install."""
        print(f"nettrim: {_missing}", file=sys.stderr)
        sys.exit(2)
