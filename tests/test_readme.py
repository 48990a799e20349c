"""The documents are true: Python examples run, commands and options exist, links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def command_lines(path: Path, program: str) -> list[list[str]]:
    """Every call of `program` in shell blocks and in inline code, split into words."""
    text = path.read_text(encoding="utf-8")
    lines = [line.partition("#")[0] for block in blocks(path, "(?:bash|sh|console)") for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [line.removeprefix("$ ").split() for line in lines if line.removeprefix("$ ").startswith(program + " ")]


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if blocks(path, "python")], ids=lambda path: path.name)
def test_python_examples_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a document run one after another, in one namespace, in an empty folder."""
    examples = blocks(document, "python")
    if any("nettrim" in example for example in examples):
        pytest.importorskip("nettrim.api")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for number, example in enumerate(examples, 1):
        exec(compile(example, f"{document.name}, example {number}", "exec"), namespace)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_commands_and_options_exist(document: Path) -> None:
    calls = [call for call in command_lines(document, "nettrim") if re.fullmatch(r"[a-z]+", call[1])]
    if not calls:
        return
    main = pytest.importorskip("typer").main
    verbs: dict[str, Any] = main.get_command(pytest.importorskip("nettrim.cli").app).commands
    for call in calls:
        assert call[1] in verbs, f"{document.name}: nettrim {call[1]}"
        parameters = verbs[call[1]].params
        options = {"--help", *(word for p in parameters for word in (*p.opts, *p.secondary_opts))}
        for word in call[2:]:
            if word.startswith("-"):
                assert word in options, f"{document.name}: {' '.join(call)}"


def test_the_table_of_verbs_is_complete() -> None:
    main = pytest.importorskip("typer").main
    verbs = main.get_command(pytest.importorskip("nettrim.cli").app).commands
    table = re.findall(r"^\| `nettrim (\w+)", (ROOT / "docs/cli.md").read_text(encoding="utf-8"), re.M)
    assert set(table) == set(verbs)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for call in command_lines(document, "make"):
        assert call[1] in targets, f"{document.name}: make {call[1]}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:|#", target):
            assert (document.parent / target.partition("#")[0]).exists(), f"{document.name}: {target}"


def test_the_extras_table_is_complete() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    table = re.findall(r"^\| `([a-z]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert set(table) == set(extras) - {"dev"}
