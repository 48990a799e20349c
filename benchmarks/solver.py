"""The solver beside general ones and the published ADMM: same programs, same machine, CPU time.

    python benchmarks/solver.py [--list] [--only PATTERN ...] [--rows 64] [--limit 300] [--rival-limit 60] [--again]

Every finished measurement goes to benchmarks/results/solver/CASE.json; a run that was stopped goes on where it was.
What was measured with other code of the solver, or with another --rows, is measured again; rivals are not. The page
docs/benchmarks.md and its figures are written from the files after each case, or alone with --report. The networks are
trained here, on MNIST where NETTRIM_DATA names a folder with it, on scikit-learn's digits otherwise.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from cases import Entry, catalogue, scaling
from measure import TOLERANCE, Answer, fingerprint, in_child, ours, unit, work
from problems import Case, images
from published_admm import RELAXATIONS, PublishedAdmm, best_settings, natural_rho
from rivals import race, race_lp
from solver_report import RESULTS, write

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
_TUNING = 4  # the published ADMM's search for rho, at each relaxation, and its run may take this many limits


class Record:
    """What is known of a case, on disk after every measurement."""

    def __init__(self, name: str) -> None:
        self.path = RESULTS / "solver" / f"{name}.json"
        self.data: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {"name": name}

    def set(self, key: str, value: Any) -> None:
        if self.path.exists():  # another process may have measured other parts meanwhile
            self.data.update(json.loads(self.path.read_text()))
        self.data[key] = value
        self._write()

    def drop(self, *keys: str) -> None:
        for key in keys:
            self.data.pop(key, None)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".tmp")
        partial.write_text(json.dumps(self.data, indent=1) + "\n")
        partial.replace(self.path)


class Run:
    """One case: its measurements, those that are on disk left out."""

    def __init__(self, entry: Entry, options: argparse.Namespace) -> None:
        self.entry, self.options, self.record = entry, options, Record(entry.name)

    @cached_property
    def case(self) -> Case:
        return self.entry.build()

    @property
    def state(self) -> dict[str, Any]:
        return {"solver": fingerprint(), "rows": self.options.rows}

    def missing(self) -> list[str]:
        """The parts that are still to be measured."""
        data = self.record.data
        if self.options.rivals:
            return [name for name in self.entry.rivals if name not in data.get("rivals", {}) or self.options.again]
        fresh = data.get("state") == self.state and not self.options.again
        parts = [] if fresh and "ours" in data else ["ours"]
        rivals = data.get("rivals", {})
        late = [name for name in self.entry.rivals if name not in rivals or self.options.again]
        if self.entry.rivals and (parts or late or "after" not in data):
            late.append("after")
        counted = ["work"] if self.entry.counted and (parts or "work" not in data) else []
        return parts + late + counted

    def measure(self) -> None:
        missing, data = self.missing(), self.record.data
        if not missing:
            return
        self._describe()
        if "ours" in missing:
            self.record.drop("after", "work", "alone")
            self._own("ours", ours)
        for name in self.entry.rivals:
            if name in missing:
                self.record.set("rivals", data.get("rivals", {}) | {name: self._rival(name)})
        if "after" in missing:
            self._own("alone", lambda case: ours(case.of(torch.tensor(self._few()))))
            self._own("after", ours)
        if "work" in missing:
            self._own("work", work)
        if not self.options.rivals:
            self.record.set("state", self.state)

    def _describe(self) -> None:
        case = self.case
        told = {key: getattr(case, key) for key in ("layer", "constraint", "epsilon", "budget")}
        live = case.live
        told |= {
            "rows": case.program.shape[0],
            "live": int(live.sum()),
            "inputs": int((case.program.inputs != 0).any(dim=0).sum()),
            "samples": case.program.samples,
            "dense": float((case.initial != 0).sum(dim=1)[live].double().mean()),
        }
        for key, value in told.items():
            self.record.set(key, value)

    def _own(self, part: str, task: Callable[[Case], Any]) -> None:
        case = self.case
        self.record.set(f"unit_{part}", unit())
        self.record.set(part, _told(in_child(lambda: task(case), self.options.limit), self.options.limit))

    def _few(self) -> list[int]:
        """The neurons that slow rivals get: spread over the live ones."""
        live = self.case.live.nonzero()[:, 0].tolist()
        count = min(self.entry.neurons, len(live))
        return [live[(2 * index + 1) * len(live) // (2 * count)] for index in range(count)]

    def _rival(self, name: str) -> dict[str, Any]:
        limit, program = self.options.rival_limit, self.case.program
        before = {"unit": unit(), "limit": limit}
        if name == "HiGHS":
            return race_lp(program, self._few(), limit) | before
        if name == "published ADMM":
            return _published(self.case, limit) | before
        return race(name, program, self._few(), limit) | before


def _published(case: Case, limit: float) -> dict[str, Any]:
    """All live neurons at once, as ours; rho and relaxation found on a neuron that is not among them."""
    live = case.live.nonzero()[:, 0]
    program, initial = case.spare or (case.of(live[:1]).program, case.initial[live[:1]])
    found = in_child(lambda: best_settings(program, initial), len(RELAXATIONS) * _TUNING * limit).value
    rho, relaxation = found or (natural_rho(program, initial), RELAXATIONS[-1])
    admm = PublishedAdmm(rho, relaxation, limit=_TUNING * limit)

    def run() -> dict[str, Any]:
        told = admm.solve(case.program.rows(live), TOLERANCE)
        good = told.accuracy <= TOLERANCE
        return {
            "seconds": float(told.own[good if bool(good.any()) else ~good].mean()),
            "accuracy": float(told.accuracy.max()),
            "violation": float(told.violation.max()),
            "reached": int(good.sum()),
            "at_least": not bool(good.all()),
            "iterations": told.iterations,
            "nonzeros": float(told.nonzeros.double().mean()),
        }

    answer = in_child(run, 3 * _TUNING * limit)  # its checks are not charged, but take time
    return _told(answer, limit / len(live)) | {"rho": rho, "relaxation": relaxation, "neurons": live.tolist()}


def _told(answer: Answer, limit: float) -> Any:
    if answer.value is not None:
        return answer.value
    return {"seconds": limit, "at_least": True, "exceeded": answer.exceeded, "error": answer.error}


def measure_scaling(kind: str, options: argparse.Namespace) -> None:
    """Two solves a size, of which the faster counts."""
    record = Record(f"scaling-{kind}")
    state = {"solver": fingerprint()}
    points = record.data.get("points", []) if record.data.get("state") == state and not options.again else []
    record.set("state", state)
    for size, build in scaling(kind):
        if any(point["size"] == size for point in points):
            continue
        case = build()
        seconds = [
            _told(in_child(lambda case=case: ours(case), options.limit), options.limit)["seconds"] for _ in range(2)
        ]
        points.append({"size": size, "live": int(case.live.sum()), "seconds": min(seconds)})
        record.set("points", points)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the cases and what is missing of each")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names, with * and ?")
    parser.add_argument("--rows", type=int, default=64, help="neurons of a layer")
    parser.add_argument("--limit", type=float, default=300.0, help="CPU seconds of one measurement of ours")
    parser.add_argument("--rival-limit", type=float, default=60.0, help="CPU seconds of one neuron of a rival")
    parser.add_argument("--rivals", action="store_true", help="measure only what does not depend on our solver")
    parser.add_argument("--again", action="store_true", help="measure anew what is on disk")
    parser.add_argument("--note", help="a sentence on the state of the machine, for the page")
    parser.add_argument("--report", action="store_true", help="write the page from what is on disk, measure nothing")
    options = parser.parse_args()
    if any(os.environ.get(name) != "1" for name in _THREADS):  # libraries read these when they are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | dict.fromkeys(_THREADS, "1"))
    torch.set_num_threads(1)
    fingerprint()
    runs = [Run(entry, options) for entry in catalogue(options.rows)]
    runs = [run for run in runs if any(fnmatch.fnmatch(run.entry.name, pattern) for pattern in options.only)]
    kinds = [kind for kind in "PM" if any(fnmatch.fnmatch(f"scaling-{kind}", pattern) for pattern in options.only)]
    if options.list:
        for run in runs:
            print(f"{run.entry.name:32} {', '.join(run.missing()) or 'done'}")
        print("\n".join(f"scaling-{kind}" for kind in kinds))
        return 0
    about = Record("about")
    if options.note is not None:
        about.set("note", options.note)
    if not options.report:
        about.set("data", images().source.name)
        about.set("torch", torch.__version__)
        for run in runs:
            run.measure()
            print(_line(run.record.data), flush=True)
            write()
            run.__dict__.pop("case", None)  # its arrays
        for kind in kinds if not options.rivals else ():
            measure_scaling(kind, options)
    write()
    return 0


def _line(data: dict[str, Any]) -> str:
    parts = [data["name"]]
    if own := data.get("ours"):
        parts.append(f"{own['seconds'] / max(1, data['live']):.4f} s a neuron")
        parts.append(f"{own['certified']} of {data['live']} certified" if "certified" in own else "not finished")
    parts += [f"{name} {rival['seconds']:.2f} s" for name, rival in data.get("rivals", {}).items()]
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
