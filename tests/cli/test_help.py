"""The help teaches: every verb has an example and says what its options are; README and help agree."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

import nettrim
from nettrim.cli import app
from nettrim.recipe import OPTIONS

VERBS = ("demo", "trim", "eval", "verify", "shrink", "bench", "reproduce")
ROOT = Path(__file__).resolve().parents[2]


def words_of(text: str) -> str:
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def test_the_help_names_every_verb(run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", result.stdout)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for verb in set(re.findall(r"^nettrim ([a-z]+)", readme, re.M)):
        assert verb in VERBS


def test_the_help_names_every_exit_code(run) -> None:
    rows = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    codes = re.findall(r"^\| (\d+) \|", rows, re.M)
    said = words_of(run("--help").stdout).partition("Exit codes: ")[2]
    assert codes == ["0", "1", "2", "3", "130", "143"] == re.findall(r"(?:^|, )(\d+) ", said.partition(".")[0])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example(run, verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    text = words_of(result.stdout)
    assert "Example" in text and f"nettrim {verb} " in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(verb: str) -> None:
    for parameter in typer.main.get_command(app).commands[verb].params:
        assert getattr(parameter, "help", ""), f"{verb} {parameter.name}"


def test_every_recipe_key_is_an_option() -> None:
    names = {parameter.name for parameter in typer.main.get_command(app).commands["trim"].params}
    names |= {"relative"} if "absolute" in names else set()
    assert set(OPTIONS) - names == {"certificate_megabytes"}  # for the directory's size: in a recipe only


def test_the_defaults_in_the_help_are_the_recipe_s(run) -> None:
    text = words_of(run("trim", "--help").stdout)
    recipe = nettrim.Recipe(epsilon=0.1)
    for option in ("scheme", "gamma", "kappa", "budget", "constraint", "slack", "tolerance", "seed"):
        assert f"[default: {getattr(recipe, option)}]" in text, option


def test_version(run) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert run("--version").stdout.strip() == f"nettrim {project['version']}"


def test_no_words_shows_the_help(run) -> None:
    assert "Usage" in run().output


def test_without_the_extra_it_says_what_to_install(folder: Path) -> None:
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("typer", "rich"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
from nettrim.cli import app
app()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 2 and "nettrim[cli]" in found.stderr and "Traceback" not in found.stderr
