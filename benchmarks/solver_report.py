"""Writes the page docs/benchmarks.md from what benchmarks/solver.py measured, and has its figure drawn."""

from __future__ import annotations

import collections
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from solver_plot import draw, slope

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
AIMS = {"SCS": 40.0, "Clarabel": 150.0, "published ADMM": 4.0}  # how many times slower the rivals should be
GEMMS = 350  # aimed at for layers with at least 500 inputs

Data = dict[str, Any]


def write() -> None:
    """Write page and figure from everything on disk."""
    from cases import catalogue  # noqa: PLC0415  # the order of cases only

    read = {path.stem: json.loads(path.read_text()) for path in (RESULTS / "solver").glob("*.json")}
    names = [entry.name for entry in catalogue(1)]
    cases = [read[name] for name in names if name in read and "ours" in read[name]]
    skipped = [name for name in names if name not in read or "ours" not in read[name]]
    grown = {kind: read[f"scaling-{kind}"]["points"] for kind in "PM" if read.get(f"scaling-{kind}", {}).get("points")}
    draw(cases, grown, RESULTS / "solver.svg")
    tables = [
        _aims(cases, grown),
        _rivals(cases),
        _ours(cases),
        _growth(grown),
        _path(),
        _budgets(),
        _robustness(),
        _left(cases, skipped),
    ]
    body = "\n\n".join("\n".join(table) for table in tables if table)
    PAGE.write_text(f"{_head(read.get('about', {}), cases)}\n\n{body}\n")


def _head(about: Data, cases: list[Data]) -> str:
    units = [1e3 * value for case in cases for key, value in case.items() if key.startswith("unit_")]
    units += [1e3 * rival["unit"] for case in cases for rival in case.get("rivals", {}).values()]
    spread = f"{min(units):.0f} to {max(units):.0f} ms, median {statistics.median(units):.0f} ms" if units else "-"
    rows = sorted({case["rows"] for case in cases})
    count = " to ".join(map(str, dict.fromkeys((rows[0], rows[-1])))) if rows else "-"
    codes = ", ".join(sorted({case["state"]["solver"] for case in cases if "state" in case}))
    return f"""# Benchmarks of the solver

Written by `make bench-solver` (`benchmarks/solver.py`), one file a case in
[benchmarks/results/solver](../benchmarks/results/solver). Data: {about.get("data", "-")}, and scikit-learn's digits;
torch {about.get("torch", "-")}. Machine: two CPU cores shared with other work, one used. Checksum of the solver's code:
{codes}. {about.get("note", "")}

![CPU time a neuron beside the rivals, and against samples and neurons](../benchmarks/results/solver.svg)

How it is measured:

- **Time** is CPU time of the process, everything on one thread. Other work shared the machine; a fixed float32 product
  of two 1000 x 1000 matrices, taken before every measurement, needed {spread}, so ratios carry noise.
- **Ours**: `solve` at default settings, tolerance 1e-4, the dense weights to fall back on. Scaling, factor, repair and
  certificate included, divided by the live neurons (those for which zero weights are no answer). Where rivals run,
  the mean of a solve before and one after them.
- **Neurons**: the first {count} of each layer (the table's *live* says how many count), not all, to keep the time in
  hand. Hidden neurons are exchangeable, but the factor is spread over fewer than in a real layer, so ours looks a
  little slower than it is. SCS, Clarabel, OSQP and HiGHS get a few of these neurons, spread over the live ones.
- **Ratio**: a rival's seconds a neuron over ours within the block. *Alone* is the same against a solve of ours of
  exactly the rival's few neurons, where nobody else shares the layer's factor: the hardest comparison for us. A rival
  that ran out of its limit, or ended less accurate, is charged with what it used, and its ratio is a lower bound (>).
- **General solvers** are called directly, with the conic or quadratic form of one neuron, scaled as ours is, without
  a modelling layer, and charged for set-up and solve only. SCS (with its Anderson acceleration), Clarabel and OSQP run
  at the loosest tolerance of a ladder whose answer our certificate accepts, which the first neuron finds and the others
  start from, and only that run is charged. Otherwise they, and HiGHS, run as they come.
- **Form**: where a neuron has more points than inputs and one, SCS, Clarabel and OSQP get its program twice, as stated
  and compressed: a QR factor of the points stands for them, which changes neither optimum nor multipliers. Each form
  has its own ladder. The faster is charged, neuron by neuron, the compressed one with its QR. What a modelling layer
  would hand them is the program as stated; the aims show that too.
- **The published ADMM** is written from the papers, batched over the same neurons as ours, in float64 (in float32 it
  stalls far from 1e-4). rho and the over-relaxation alpha, of which the papers do not speak (the authors' earlier code
  has 1.8), are the best of a grid over both on one neuron outside the measured set; the column *form* shows them. The
  search is not charged, nor are the checks that stop each neuron. A neuron's time is its equal share with those that
  iterate beside it; only neurons that it certifies within 5,000 iterations count.
- **Accuracy** is judged by our certificate: the larger of gap and violation of the rival's answer as it came, or the
  gap of our repair of it, whichever is better. Ours have to be feasible to 1e-9 in float64 (1e-6 of the responses'
  norm where float32 weights have to meet equations).
- **GEMMs**: work in units of one product `inputs @ weight.T` of the live neurons. *Told* is the solver's own count;
  *counted* is every matrix product and factor of the solve, wherever it happens, by torch's counter of
  floating-point operations, whatever their precision."""


def _aims(cases: list[Data], grown: dict[str, list[Data]]) -> list[str]:
    done = [case for case in cases if "certified" in case["ours"]]
    stopped = [case for case in cases if "certified" not in case["ours"]]
    live = sum(case["live"] for case in cases)
    certified = sum(case["ours"]["certified"] for case in done)
    feasible = sum(case["ours"]["feasible"] for case in done)
    fallback = sum(case["ours"]["fallback"] for case in done)
    late = f"; {len(stopped)} cases ran out of their limit and count as failed" if stopped else ""
    lines = [
        "## Aims",
        "",
        f"Over the {len(cases)} cases measured.",
        "",
        "| aim | measured | reached |",
        "|---|---|---|",
    ]
    share = 100 * certified / max(1, live)
    seen = f"{certified} of {live}, {share:.2f} %{late}"
    lines.append(f"| 99.9 % of live neurons certified to 1e-4 | {seen} | {_yes(share >= 99.9)} |")
    lines.append(f"| all answers feasible in float64 | {feasible} of {live}{late} | {_yes(feasible == live)} |")
    lines.append(f"| no answer made dense by its repair | {_density(cases, fallback)} | {_yes(fallback == 0)} |")
    for name, factor in AIMS.items():
        found = [(case, case["rivals"][name]) for case in cases if name in case.get("rivals", {})]
        if not found:
            lines.append(f"| {name}: {factor:g} times our time | not measured | - |")
            continue
        ratios = [rival["seconds"] / _seconds(case) for case, rival in found]
        told = _range(ratios, [rival for _, rival in found])
        lines.append(f"| {name}: {factor:g} times our time | {told} | {_yes(min(ratios) >= factor)} |")
        if "runs" in found[0][1]:
            stated = [_as_stated(rival) / _seconds(case) for case, rival in found]
            told = f"{_range(stated, [])} | {_yes(min(stated) >= factor)}"
            lines.append(f"| {name}, its program as stated, without a QR: {factor:g} times our time | {told} |")
        apart = [(_alone(case, name, rival), rival) for case, rival in found]
        apart = [(ratio, rival) for ratio, rival in apart if ratio is not None]
        if apart:
            told = _range(*zip(*apart, strict=True))
            lines.append(f"| {name}, beside our solve of its few neurons alone | {told} | no aim |")
    wide = [case for case in done if case["inputs"] >= 500]
    if wide:
        told = [case["ours"]["gemms"] for case in wide]
        counted = [case["work"] for case in wide if isinstance(case.get("work"), float)]
        seen = f"told {min(told):.0f} to {max(told):.0f}"
        if counted:
            within = sum(count <= GEMMS for count in counted)
            seen += f"; counted {min(counted):.0f} to {max(counted):.0f}, {within} of {len(counted)} within"
        reached = bool(counted) and max(counted) <= GEMMS
        lines.append(f"| at most {GEMMS} GEMMs where N >= 500 | {seen} | {_yes(reached)} |")
    for kind, points in grown.items():
        times = points[-1]["size"] / points[0]["size"]
        power = slope(points)
        reached = power <= 1.1 and times >= 16
        lines.append(f"| time linear in {kind} | exponent {power:.2f} over {times:.0f} times | {_yes(reached)} |")
    for told in _paths():
        what = f"{told['epsilons']} epsilons {_span(told)}, {told['constraint']}, budget {told['budget']}"
        lines.append(f"| a path of {what}: 3 single solves | {told['ratio']} | {_yes(told['ratio'] <= 3)} |")
    return lines


def _range(ratios: Sequence[float], rivals: Sequence[Data]) -> str:
    more = sum(rival.get("at_least", False) for rival in rivals)
    seen = f"{min(ratios):.1f} to {max(ratios):.1f}, median {statistics.median(ratios):.1f} ({len(ratios)} cases"
    return seen + (f", {more} of them lower bounds)" if more else ")")


def _as_stated(rival: Data) -> float:
    """A rival's seconds a neuron where each gets its program as stated."""
    forms = [[run, *run.get("others", [])] for run in rival["runs"]]
    return statistics.mean(next(run for run in tried if run["form"] == "as stated")["seconds"] for tried in forms)


def _alone(case: Data, name: str, rival: Data) -> float | None:
    """A rival's time over that of our solve of exactly its neurons; None for one that has all of them, or where it is
    not measured."""
    own = case.get("alone", {})
    if name == "published ADMM" or "certified" not in own:
        return None
    return rival["seconds"] * len(rival["neurons"]) / own["seconds"]


def _density(cases: list[Data], fallback: int) -> str:
    """How our nonzeros compare with those of Clarabel's answers to the same neurons."""
    ours = theirs = 0
    for case, run in _runs(cases, "Clarabel"):
        mine = case["ours"].get("nonzeros", {}).get(str(run["neuron"]))
        if mine is not None and run["nonzeros"]:
            ours, theirs = ours + mine, theirs + run["nonzeros"]
    seen = f"{fallback} fell back on the dense weights"
    return f"{seen}; nonzeros {ours} against Clarabel's {theirs} on the same neurons" if theirs else seen


def _runs(cases: Iterable[Data], name: str) -> Iterator[tuple[Data, Data]]:
    for case in cases:
        for run in case.get("rivals", {}).get(name, {}).get("runs", []):
            yield case, run


def _rivals(cases: list[Data]) -> list[str]:
    heads = (
        "case",
        "rival",
        "form",
        "neurons",
        "CPU s a neuron",
        "ours",
        "ratio",
        "alone",
        "within 1e-4",
        "worst accuracy",
        "nonzeros",
        "ours",
    )
    lines = ["## Beside others", "", *_table(heads)]
    for case in cases:
        for name, rival in case.get("rivals", {}).items():
            sign = "> " if rival.get("at_least") else ""
            alone = _alone(case, name, rival)
            accuracy = rival.get("accuracy", float("inf"))
            ratio = rival["seconds"] / _seconds(case)
            cells = (
                *(case["name"], name, _form(rival), len(rival["neurons"])),
                *(f"{sign}{rival['seconds']:.3g}", f"{_seconds(case):.3g}"),
                *(f"{sign}{ratio:.1f}", "" if alone is None else f"{sign}{alone:.1f}"),
                f"{rival.get('reached', 0)} of {len(rival['neurons'])}",
                f"{accuracy:.1e}" if accuracy < 1e9 else "none",
                *_sizes(case, rival),
            )
            lines.append(_row(cells))
    return lines if len(lines) > 4 else []


def _form(rival: Data) -> str:
    """The forms that were charged, with their numbers where neurons differ; the published ADMM's settings."""
    if "relaxation" in rival:
        return f"rho {rival['rho']:.2g}, alpha {rival['relaxation']:g}"
    count = collections.Counter(run["form"] for run in rival.get("runs", []) if "form" in run)
    return ", ".join(count if len(count) == 1 else (f"{number} {form}" for form, number in count.items()))


def _sizes(case: Data, rival: Data) -> tuple[str, str]:
    """Mean nonzeros of a rival's answers and of ours to the same neurons."""
    mine = case["ours"].get("nonzeros", {})
    own = [mine[str(neuron)] for neuron in rival["neurons"] if str(neuron) in mine]
    runs = [run["nonzeros"] for run in rival.get("runs", []) if not run.get("exceeded")]
    theirs = rival.get("nonzeros", statistics.mean(runs) if runs else None)
    return ("" if theirs is None else f"{theirs:.1f}"), (f"{statistics.mean(own):.1f}" if own else "")


def _ours(cases: list[Data]) -> list[str]:
    heads = ("case", "layer", "constraint", "eps", "budget", "N", "P", "live", "CPU s a neuron", "certified")
    heads += ("worst gap", "worst violation", "GEMMs told", "counted", "nonzeros, of dense")
    lines = ["## This solver, default settings", "", *_table(heads)]
    for case in cases:
        own, first = case["ours"], (case["name"], case["layer"], case["constraint"], case["epsilon"], case["budget"])
        size = (case["inputs"], case["samples"], case["live"])
        if "certified" not in own:
            why = f"> {own['seconds']:.0f} s in all" if own.get("exceeded") else own.get("error", "")
            lines.append(_row((*first, *size, why, "**none**", "", "", "", "", "")))
            continue
        kept = statistics.mean(own["nonzeros"].values()) if own["nonzeros"] else 0.0
        work = case.get("work")
        share = f"{own['certified']} of {case['live']}"
        share = share if own["certified"] == case["live"] else f"**{share}**"
        cells = (
            *(*first, *size, f"{_seconds(case):.3g}", share, f"{own['worst_gap']:.0e}", f"{own['violation']:.0e}"),
            *(f"{own['gemms']:.0f}", f"{work:.0f}" if isinstance(work, float) else ""),
            f"{kept:.1f} of {case['dense']:.0f}",
        )
        lines.append(_row(cells))
    return lines


def _growth(grown: dict[str, list[Data]]) -> list[str]:
    if not grown:
        return []
    lines = ["## Scaling", "", "CPU seconds of a whole solve, the faster of two; distance, eps .05, 300 inputs.", ""]
    what = {"P": "samples P (64 neurons)", "M": "neurons M (2,000 samples)"}
    for kind, points in grown.items():
        steps = ", ".join(f"{point['size']}: {point['seconds']:.2f}" for point in points)
        lines.append(f"- {what[kind]}: {steps}; fitted exponent {slope(points):.2f}.")
    return lines


def _paths() -> list[Data]:
    path = RESULTS / "path.json"
    return json.loads(path.read_text()) if path.exists() else []


def _span(told: Data) -> str:
    low, high = told["span"]
    return f"from {low:g} to {high:g}"


def _path() -> list[str]:
    measured = _paths()
    if not measured:
        return []
    lines = ["## A path of epsilons, warm-started", ""]
    lines += [
        "`make bench-path`: shares of the responses' norm, equally far apart in their logarithm; layer 2 of the small",
        "network; CPU seconds.",
        "",
    ]
    heads = ("constraint", "budget", "epsilons", "live", "values", "path", "one alone, mean", "ratio", "uncertified")
    lines += _table(heads)
    for told in measured:
        alone = f"{statistics.mean(told['single']):.2f}"
        cells = [told["constraint"], told["budget"], _span(told), told["live"], told["epsilons"]]
        lines.append(_row([*cells, f"{sum(told['path']):.2f}", alone, told["ratio"], told["uncertified"]]))
    return lines


def _budgets() -> list[str]:
    path = RESULTS / "budgets.json"
    if not path.exists():
        return []
    lines = ["## Budgets that neurons share", ""]
    lines += [
        "`make bench-budgets`: CPU seconds of a layer whose neurons have budgets of their own, share one in clusters",
        "of 8, or all share one; the last two beside the first. 64 neurons, of 784 inputs 32, or M; all samples, or P.",
        "",
    ]
    lines += _table(("case", "constraint", "epsilon", "own", "clusters", "ratio", "layer", "ratio", "uncertified"))
    for told in json.loads(path.read_text()):
        own = told["neuron seconds"]
        cells = [told["case"], told["constraint"], f"{told['epsilon']:g}", f"{own:.2f}"]
        for budget in ("8", "layer"):
            seconds = told[f"{budget} seconds"]
            cells += [f"{seconds:.2f}", f"{seconds / own:.1f}"]
        open_neurons = sum(told[f"{budget} uncertified"] for budget in ("neuron", "8", "layer"))
        lines.append(_row([*cells, open_neurons]))
    return lines


def _robustness() -> list[str]:
    path = RESULTS / "robustness.json"
    if not path.exists():
        return []
    told = json.loads(path.read_text())
    lines = ["## Robustness", "", f"`python benchmarks/robustness.py --count {told['count']}`: generated programs with"]
    lines += [
        "scales of 1e-10 to 1e10, rank-deficient, with duplicated rows and columns, dead, all active, tight at the"
    ]
    lines += ["dense weights, infeasible on purpose.", ""]
    lines += [f"- {meaning}: {told['verdicts'].get(verdict, 0)}" for verdict, meaning in told["meanings"].items()]
    return lines


def _left(cases: list[Data], skipped: list[str]) -> list[str]:
    lines = [f"- {name}" for name in skipped]
    for case in cases:
        ends = collections.Counter(case["ours"].get("open", {}).values())
        named = f"- {case['name']}"
        lines += [f"{named}: {count} of {case['live']} neurons ended {state}" for state, count in ends.items()]
    return ["## Not run, or not certified", "", *lines] if lines else []


def _seconds(case: Data) -> float:
    """Our CPU seconds a live neuron."""
    runs = [case[part]["seconds"] for part in ("ours", "after") if "seconds" in case.get(part, {})]
    return statistics.mean(runs) / max(1, case["live"])


def _table(heads: Iterable[str]) -> list[str]:
    heads = tuple(heads)
    return [_row(heads), "|" + "---|" * len(heads)]


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"
