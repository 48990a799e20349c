"""What the package promises as a whole: imports point downwards, the core is small, and nothing reads a pickle."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nettrim

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "nettrim"
FILES = sorted(SOURCE.rglob("*.py"))
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOLS = SETTINGS["project"], SETTINGS["tool"]
CONTRACTS = TOOLS["importlinter"]["contracts"]
OPTIONAL = {
    re.split("[>=]", requirement)[0].replace("scikit-learn", "sklearn")
    for extra, requirements in PROJECT["optional-dependencies"].items()
    for requirement in requirements
    if extra != "dev" and not requirement.startswith("nettrim[")
}
PLUG_INS = re.compile(r"nettrim\.(models\.onnx|gain\.onnx|onnx_saving)")
EXTRAS = sorted(OPTIONAL | set(CONTRACTS[1]["forbidden_modules"]))  # with what they bring: click, highspy


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("importlinter")
    code = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports_command as c; c()"
    command = [sys.executable, "-c", code, "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(SOURCE, tmp_path / "src" / "nettrim", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_imports_point_downwards(copied: Path) -> None:
    run = lint_imports(copied)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("programs/budgets.py", "import nettrim.solvers", "nettrim.programs is not allowed to import nettrim.solvers"),
        ("models/base.py", "import nettrim.executors", "nettrim.models is not allowed to import nettrim.executors"),
        ("layerwise.py", "import cvxpy", "nettrim is not allowed to import cvxpy"),
        ("attic.py", "", "nettrim.attic"),
    ],
)
def test_the_contract_notices(copied: Path, file: str, line: str, complaint: str) -> None:
    """An import upwards, one sideways, an optional dependency in the core, and a module without a place."""
    with (copied / "src" / "nettrim" / file).open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    run = lint_imports(copied)
    assert run.returncode != 0
    assert complaint in run.stdout


def test_the_design_notes_show_the_contract() -> None:
    layers = [re.findall(r"\w+", layer) for layer in CONTRACTS[0]["layers"]]
    (shown,) = re.findall(r"```\n(cli > .*?)```", (ROOT / "docs/design-notes.md").read_text(encoding="utf-8"), re.S)
    assert [re.findall(r"\w+", room) for room in shown.split(">")] == layers[1:]  # all but __main__


def test_the_core_imports_without_any_extra() -> None:
    """Its public names, and every module but the command line and those of ONNX, which say what they need."""
    code = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))
import nettrim
for public in dir(nettrim):
    getattr(nettrim, public)
for found in pkgutil.walk_packages(nettrim.__path__, "nettrim.", onerror=lambda name: None):
    if found.name.endswith("__main__") or found.name.startswith("nettrim.cli"):
        continue
    try:
        importlib.import_module(found.name)
    except nettrim.errors.MissingExtraError:
        print(found.name)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert [name for name in run.stdout.split() if not PLUG_INS.match(name)] == []


def test_every_optional_dependency_is_kept_out_of_the_core() -> None:
    assert OPTIONAL and OPTIONAL.issubset(CONTRACTS[1]["forbidden_modules"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_file_reads_a_pickle(file: Path) -> None:
    """No pickle module, no torch.load or torch.save, no allow_pickle=True, no eval or exec."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                assert not {name.name.partition(".")[0] for name in names} & {"pickle", "cloudpickle", "dill", "joblib"}
            case ast.ImportFrom(module=module):
                assert (module or "").partition(".")[0] not in {"pickle", "cloudpickle", "dill", "joblib"}
            case ast.Attribute(value=ast.Name(id="torch"), attr=attribute):
                assert attribute not in {"load", "save"}
            case ast.keyword(arg="allow_pickle", value=value):
                assert isinstance(value, ast.Constant) and value.value is False
            case ast.Call(func=ast.Name(id=function)):
                assert function not in {"eval", "exec"}


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_dependency_has_a_bound_and_a_pin() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"].values()
    for requirement in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]:
        if requirement.startswith("nettrim["):
            continue
        name, bound = re.split(">=", requirement.partition(",")[0])
        assert [int(part) for part in pins[name].split(".")[:3]] >= [int(part) for part in bound.split(".")], name
    assert pins["torch"] == "2.13.0"  # without a build's name: pip picks the one that fits the machine


def test_the_source_distribution_has_what_the_tests_read() -> None:
    include = {name.removeprefix("/") for name in TOOLS["hatch"]["build"]["targets"]["sdist"]["include"]}
    assert all((ROOT / name).exists() for name in include)
    assert {path.name for path in ROOT.glob("*.md")} <= include
    assert {"src", "tests", "docs", "benchmarks", ".ci/lowest.py", "constraints.txt", "Makefile"} <= include


def test_types_are_shipped() -> None:
    assert (SOURCE / "py.typed").is_file()


def test_every_room_and_public_name_has_a_docstring() -> None:
    missing = []
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if tree.body and not ast.get_docstring(tree):
            missing.append(str(file.relative_to(SOURCE)))
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{file.relative_to(SOURCE)}: {node.name}")
    assert not missing


def test_everything_that_users_get_has_a_docstring() -> None:
    """Functions, classes, their methods and properties; one that overrides another may leave it to that one."""
    public = {name: getattr(nettrim, name) for name in dir(nettrim) if not name.startswith("_")}
    public = {name: value for name, value in public.items() if not inspect.ismodule(value)}
    assert {"trim", "Trimmed", "Recipe", "solve", "Report"} <= set(public)
    missing = [name for name, value in public.items() if not inspect.getdoc(value)]
    for name, value in public.items():
        for member in dir(value) if inspect.isclass(value) else ():
            found = inspect.getattr_static(value, member)
            called = isinstance(found, property | classmethod | staticmethod) or inspect.isfunction(found)
            if called and not member.startswith("_") and not inspect.getdoc(getattr(value, member)):
                missing.append(f"{name}.{member}")
    assert not missing
