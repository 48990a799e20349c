"""Robustness of `solve`: generated programs, each in a worker process with a time limit.

    python benchmarks/robustness.py --count 2000 [--first 0] [--seeds N ...] [--limit 30] [--log FILE]

Reports crashes, hangs, answers that their certificate does not back, feasible programs left uncertified, and infeasible
ones without a proof. With --log every seed's verdict is kept, and a run that was stopped goes on where it was; the
summary goes to benchmarks/results/robustness.json with --summary. The exit status is 1 if there were crashes, hangs,
unbacked answers or false proofs.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "solvers"))

SERIOUS = ("crash", "hang", "unbacked", "false proof")
MEANINGS = {
    "crash": "raised, or ended the process",
    "hang": "not done within the limit",
    "unbacked": "claimed feasible or certified, and its certificate does not say so",
    "false proof": "called infeasible although the dense weights are feasible",
    "no proof": "infeasible on purpose, and not proved so",
    "violated": "feasible, and ended without a feasible point, as its status says",
    "uncertified": "feasible point, gap above the tolerance, as its status says",
    "undecided": "unknown whether feasible (rounding decides), and neither certified nor proved infeasible",
    "fine": "certified, or proved infeasible where nothing is feasible",
}
RESULT = Path(__file__).resolve().parent / "results" / "robustness.json"


def judge(seed: int, tolerance: float, most: int) -> tuple[str, str, float]:
    """(verdict, what the program is, seconds) of one seed."""
    import torch  # noqa: PLC0415  # in the worker only
    from generate import generate  # noqa: PLC0415

    import nettrim.solvers as solvers  # noqa: PLC0415
    from nettrim.certificates import certify  # noqa: PLC0415

    torch.set_num_threads(1)
    case = generate(seed, most=most)
    began = time.perf_counter()
    try:
        solution = solvers.solve(case.program, tolerance, initial=case.initial)
    except Exception as error:
        return "crash", f"{case.name}: {type(error).__name__}: {error}", time.perf_counter() - began
    seconds = time.perf_counter() - began
    status = collections.Counter(state.name for state in solution.status)
    told = solution.certificate
    note = f"{case.name}: {dict(status)}, gap {told.gap:.2e}, violation {told.violation:.2e}"
    certificate = certify(case.program, solution.weight, solution.dual)
    infeasible = [state is solvers.Status.INFEASIBLE for state in solution.status]
    coupled = case.program.penalty.couples_rows
    exact = case.program.epsilon is not None and bool((case.program.epsilon == 0).any())
    rounded = exact and case.program.inputs.dtype == torch.float32  # a float32 weight meets no equation
    members = torch.bincount(case.program.groups).tolist()
    for row, state in enumerate(solution.status):
        group = int(case.program.groups[row])
        # float32 numbers are good for 3e-7 of the largest each, a distance of zero over many for the root of their sum
        allowed = max(1e-6, 3e-7 * (members[group] * case.program.samples) ** 0.5) if rounded else 1e-9
        gap = certificate.gap if coupled else float(certificate.group_gap[group])
        violation = float(certificate.group_violation[group])
        if state.name == "ZERO":  # optimal whatever happens to the other rows of its budget
            continue
        if state.feasible and violation > allowed:
            return "unbacked", note, seconds
        if state.certified and not gap <= tolerance:
            return "unbacked", note, seconds
    if case.feasible and any(infeasible):
        return "false proof", note, seconds
    if case.feasible is False:
        return (
            ("fine" if all(infeasible) or (case.program.group_count > 1 and any(infeasible)) else "no proof"),
            note,
            seconds,
        )
    if case.feasible and not all(state.feasible for state in solution.status):
        return "violated", note, seconds
    if case.feasible and not solution.certified:
        return "uncertified", note, seconds
    if case.feasible is None and not all(state.certified or state.name == "INFEASIBLE" for state in solution.status):
        return "undecided", note, seconds
    return "fine", note, seconds


def _work(connection, tolerance: float, most: int) -> None:
    while True:
        seed = connection.recv()
        connection.send(judge(seed, tolerance, most))


def _processor_seconds(pid: int | None) -> float:
    """CPU seconds of a process, so that other work is not taken for a hang; seconds where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.perf_counter()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Worker:
    """A process that judges seeds one by one; killed and started again when it hangs or dies."""

    def __init__(self, tolerance: float, most: int) -> None:
        self.settings = (tolerance, most)
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, *self.settings), daemon=True)
        self.process.start()
        self.fresh = True

    def judge(self, seed: int, limit: float) -> tuple[str, str, float]:
        self.connection.send(seed)
        began, used = time.perf_counter(), _processor_seconds(self.process.pid)
        patience = limit + (60 if self.fresh else 0)  # the first answer waits for imports
        verdict = None
        while verdict is None and _processor_seconds(self.process.pid) - used < patience:
            if self.connection.poll(0.2):
                try:
                    verdict = self.connection.recv()
                except EOFError:
                    break
            elif not self.process.is_alive():
                break
        self.fresh = False
        if verdict is not None:
            return verdict
        died = not self.process.is_alive()
        self.stop()
        self.start()
        return ("crash" if died else "hang"), f"seed {seed}", time.perf_counter() - began

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", help="exactly these, instead of `count` from `first` on")
    parser.add_argument("--limit", type=float, default=30.0, help="CPU seconds for one program")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--most", type=int, default=60, help="largest number of samples and inputs")
    parser.add_argument("--log", type=Path, help="one line of JSON a seed; seeds that are in it are not run again")
    parser.add_argument("--summary", action="store_true", help=f"write {RESULT.name} for the report")
    options = parser.parse_args()
    seeds = options.seeds or list(range(options.first, options.first + options.count))
    known = {}
    if options.log and options.log.exists():
        known = {entry["seed"]: entry for entry in map(json.loads, options.log.read_text().splitlines())}
    worker = Worker(options.tolerance, options.most)
    entries = []
    for seed in seeds:
        if seed in known:
            entries.append(known[seed])
            continue
        verdict, note, seconds = worker.judge(seed, options.limit)
        entries.append({"seed": seed, "verdict": verdict, "seconds": round(seconds, 3), "note": note})
        if options.log:
            with options.log.open("a") as stream:
                stream.write(json.dumps(entries[-1]) + "\n")
        if verdict != "fine":
            print(f"{verdict:12} seed {seed} {seconds:6.2f} s  {note}", flush=True)
    worker.stop()
    verdicts = collections.Counter(entry["verdict"] for entry in entries)
    slowest = max(entries, key=lambda entry: entry["seconds"])
    print(f"\n{dict(verdicts)}; slowest {slowest['seconds']:.2f} s (seed {slowest['seed']}: {slowest['note']})")
    if options.summary:
        found = [entry for entry in entries if entry["verdict"] != "fine"]
        told = {"count": len(seeds), "limit": options.limit, "verdicts": verdicts, "meanings": MEANINGS, "found": found}
        RESULT.write_text(json.dumps(told, indent=1) + "\n")
    return int(any(verdicts[verdict] for verdict in SERIOUS))


if __name__ == "__main__":
    sys.exit(main())
