"""What a terminal shows fits into it, and names what it is about."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from nettrim.report import Report


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_the_table_fits_and_names_every_layer(trimmed: str, width: int) -> None:
    report = Report.from_dict(json.loads(Path(trimmed, "report.json").read_text()))
    console = Console(width=width, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    console.print(report.rich())
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for word in ("layer0", "layer2", "after", "sparsity", "discrepancy", "certified"):
        assert word in text
    assert ("activation" in text) == (width > 110)
