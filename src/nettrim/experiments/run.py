"""Runs one experiment: says how long it takes, resumes what was interrupted, writes everything into one folder."""

from __future__ import annotations

import importlib
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol

import torch

from nettrim.errors import InputError, near, should
from nettrim.experiments.checkpoints import Checkpoints, settings_digest
from nettrim.experiments.context import Context, Findings, Say, Source
from nettrim.experiments.settings import Settings, read_settings
from nettrim.experiments.verdicts import Compared, compare
from nettrim.experiments.writing import RunFacts, write_findings
from nettrim.version import __version__


class Experiment(Protocol):
    """What a module of this package offers: its data (checkpoints depend on them), and its work."""

    def data_source(self, options: dict[str, Any]) -> Source: ...

    def run(self, context: Context) -> Findings: ...


@dataclass(frozen=True)
class Reproduced:
    """One finished run."""

    settings: Settings
    findings: Findings
    compared: tuple[Compared, ...]
    folder: Path
    seconds: float


def load(name: str) -> tuple[Settings, Experiment]:
    """The settings and the code of an experiment. Raises InputError for an unknown name."""
    settings = read_settings(name)
    module: Any = importlib.import_module(f"nettrim.experiments.{name.replace('-', '_')}")
    return settings, module


def reproduce(
    name: str,
    folder: Path,
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    device: str | None = None,
    say: Say = lambda text: None,
) -> Reproduced:
    """Run an experiment, or what is left of it, and write tables, figures, settings and verdicts to `folder`.

    `quick`: a small version that takes under two minutes. `only`: patterns of the parts to run ("NN2-10K"); parts
    that an earlier run finished are shown all the same.
    Raises InputError for an unknown name or part and for a folder that cannot be written, DataError for missing data.
    """
    settings, experiment = load(name)
    options = settings.options(quick)
    data = experiment.data_source(options)
    _check_folder(folder)
    facts = {"name": name, "version": __version__, "data": data.name, "options": options}
    checkpoints = Checkpoints(folder / "parts", settings_digest(facts))
    context = Context(
        options, checkpoints, say, quick, tuple(only), made_by(), None if device is None else torch.device(device)
    )
    minutes = settings.minutes["quick" if quick else "full"]
    version = "quick version" if quick else "full version"
    say(f"{name}: {settings.title}. {version}, about {_minutes(minutes)} on two cores. Data: {data.name}.")
    say(f"Finished parts go to {folder}: an interrupted run goes on from there when it is started again.")
    started = time.perf_counter()
    findings = experiment.run(context)
    if context.unmet:
        wrong = ", ".join(map(repr, context.unmet))
        cure = near(context.unmet[0], context.used)
        raise InputError(should("--only", "patterns that some part matches", wrong, cure))
    findings = replace(findings, notes=(*findings.notes, *context.notes))
    times = [cell.seconds for cell in context.used.values() if cell.seconds is not None]
    seconds = sum(times) or time.perf_counter() - started
    compared = compare(settings.expected, findings.numbers, comparable=data.papers and not quick)
    run_facts = RunFacts(
        command=f"nettrim reproduce {name}" + (" --quick" if quick else ""),
        quick=quick,
        data=data.name,
        options=options,
        seconds=seconds,
        made_by=tuple(sorted({cell.made_by for cell in context.used.values()})) or (made_by(),),
        machine=f"{platform.machine()}, torch {torch.__version__} on {device or 'the CPU'}",
        parts=len(context.used),
        timed=len(times),
    )
    write_findings(folder, settings, findings, compared, run_facts)
    checkpoints.write_record(context.used)
    return Reproduced(settings, findings, compared, folder, seconds)


def made_by() -> str:
    """This version of nettrim, with the commit where it runs from a checkout."""
    here = Path(__file__).parent
    try:
        asked = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        commit = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        tracked = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return f"nettrim {__version__}"
    return f"nettrim {__version__}, commit {commit}" if tracked.returncode == 0 else f"nettrim {__version__}"


def _check_folder(folder: Path) -> None:
    """Refuse, before hours of work, a folder that cannot be made or written. Raises InputError."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(should("--output", "a directory", repr(str(folder))))
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        got = f"{str(folder)!r} ({error.strerror or error})"
        raise InputError(should("--output", "a directory that can be written", got)) from error


def _minutes(minutes: float) -> str:
    if minutes < 2:
        return f"{60 * minutes:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
