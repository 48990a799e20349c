"""What a run leaves behind: Markdown and CSV tables, SVG figures, settings, seeds, time, and a verdict a number."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from nettrim.experiments.context import Findings
from nettrim.experiments.settings import Settings
from nettrim.experiments.verdicts import Compared, Sense, in_short
from nettrim.files import atomic_write

RESULTS, VERDICTS, FACTS = "results.md", "verdicts.csv", "run.json"


@dataclass(frozen=True)
class RunFacts:
    """How a run was made."""

    command: str
    quick: bool
    data: str
    options: Mapping[str, Any]
    seconds: float
    made_by: tuple[str, ...]
    machine: str
    parts: int
    timed: int  # parts of which the time is known


def write_findings(
    folder: Path, settings: Settings, findings: Findings, compared: Sequence[Compared], facts: RunFacts
) -> None:
    """Write results.md, a CSV a table, verdicts.csv, an SVG a figure and run.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in findings.tables:
        _write(folder / f"{table.name}.csv", _csv(table.header, table.rows))
    if compared:
        _write(folder / VERDICTS, _csv(_VERDICT_HEADER, [_verdict_row(entry, plain=True) for entry in compared]))
    figures, remarks = _figures(folder, findings)
    _write(folder / RESULTS, markdown(settings, findings, compared, facts, figures, remarks))
    record = {
        "experiment": settings.name,
        "command": facts.command,
        "made_by": list(facts.made_by),
        "data": facts.data,
        "options": dict(facts.options),
        "seconds": round(facts.seconds, 1),
        "machine": facts.machine,
        "parts": facts.parts,
        "verdicts": dict(Counter(str(entry.verdict) for entry in compared)),
        "claims": {claim.text: claim.verdict for claim in findings.claims},
    }
    _write(folder / FACTS, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def markdown(
    settings: Settings,
    findings: Findings,
    compared: Sequence[Compared],
    facts: RunFacts,
    figures: Iterable[str] = (),
    remarks: Iterable[str] = (),
) -> str:
    """The whole story of a run as one Markdown page."""
    made = "; ".join(facts.made_by)
    lines = [f"# {settings.name}: {settings.title}", "", f"Source: {settings.source}.", ""]
    if facts.quick:
        lines += ["**This is the quick version: smaller than the paper's experiment.**", ""]
    lines += ["```bash", facts.command, "```", ""]
    lines += [
        f"Made by {made}. Data: {facts.data}. Time: {_time(facts.seconds)} in {_parts(facts)} ({facts.machine}).",
        "",
    ]
    if compared:
        lines += [in_short(compared), ""]
    if findings.claims:
        lines += ["## Claims", "", *_md(("claim", "where", "verdict", "evidence"), [
            (claim.text, claim.where, f"**{claim.verdict}**", claim.evidence) for claim in findings.claims
        ]), ""]  # fmt: skip
    for table in findings.tables:
        lines += [f"## {table.title}", "", *_md(table.header, table.rows), "", f"[CSV]({table.name}.csv)", ""]
    if compared:
        lines += ["## Number by number", "", *_md(_VERDICT_HEADER, map(_verdict_row, compared)), ""]
    for name in figures:
        lines += [f"## {name.replace('-', ' ')}", "", f"![{name}]({name}.svg)", ""]
    notes = [*settings.notes, *findings.notes, *remarks]
    if notes:
        lines += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    lines += ["## Settings", "", "```json", json.dumps(dict(facts.options), indent=1, ensure_ascii=False), "```", ""]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A cell of a table: four digits of a number, a dash for what there is not."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value)


_VERDICT_HEADER = ("number", "where", "paper", "here", "better is", "within", "verdict", "why")


def _verdict_row(entry: Compared, plain: bool = False) -> tuple[Any, ...]:
    expected = entry.expected
    verdict = str(entry.verdict) if plain else f"**{entry.verdict}**"
    paper = expected.instead or expected.value
    within = expected.within or ""
    sense = expected.sense if expected.sense in (Sense.HIGHER, Sense.LOWER) else "–"
    return expected.key, expected.where, paper, entry.measured, str(sense), within, verdict, entry.reason


def _md(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(shown(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(["" if cell is None or cell != cell else cell for cell in row])
    return stream.getvalue()


def _figures(folder: Path, findings: Findings) -> tuple[list[str], list[str]]:
    if not findings.figures:
        return [], []
    if find_spec("matplotlib") is None:
        return [], ['No figures: they need pip install "nettrim[report]".']
    for name, paint in findings.figures.items():
        _write(folder / f"{name}.svg", paint())
    return list(findings.figures), []


def _write(path: Path, text: str) -> None:
    atomic_write(path, text.encode())


def _parts(facts: RunFacts) -> str:
    untimed = facts.parts - facts.timed
    return f"{facts.timed} parts" + (f" and that of {untimed} others not kept" if untimed else "")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
