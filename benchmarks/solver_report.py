"""Writes what benchmarks/solver.py measured: JSON, a table in Markdown, a plot, and the page in docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
FACTORS = {"SCS": 40.0, "Clarabel": 150.0, "published ADMM": 4.0}  # how many times slower the rivals should be
COLUMNS = ("layer", "constraint", "eps", "budget", "P", "live", "CPU s a neuron", "certified", "dense fall-back")
MORE = ("worst violation", "GEMMs", "nonzeros")


def write(result: dict[str, Any]) -> None:
    """Write everything anew; called after each case, so that a run that is cut off leaves what it had."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "solver.json").write_text(json.dumps(result, indent=1) + "\n")
    body = "\n".join([*_aims(result), "", *_ours(result), "", *_rivals(result), "", *_scaling(result), *_rest(result)])
    (RESULTS / "solver.md").write_text("# Solver benchmark\n\n" + _what(result) + "\n\n" + body + "\n")
    plot(result)
    PAGE.write_text(_page(result, body))


def plot(result: dict[str, Any]) -> None:
    """Time a neuron beside the rivals, and time against M and P."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    raced = [case for case in result["cases"] if case["rivals"]]
    labels = [f"{_short(case['layer'])}\n{case['constraint']}, {case['epsilon']}" for case in raced]
    names = list(dict.fromkeys(["nettrim", *(name for case in raced for name in case["rivals"])]))
    for name in names if raced else ():
        points = [
            (index, case["ours"]["seconds"] if name == "nettrim" else case["rivals"][name]["seconds"])
            for index, case in enumerate(raced)
            if name == "nettrim" or name in case["rivals"]
        ]
        left.scatter(*zip(*points, strict=True), label=name, marker="D" if name == "nettrim" else "o")
    left.set_yscale("log")
    left.set_xticks(range(len(raced)), labels, fontsize=6)
    left.set_ylabel("CPU seconds a neuron")
    if raced:
        left.legend(fontsize=7)
    for kind, part in result["scaling"].items():
        sizes = [point["size"] / part["points"][0]["size"] for point in part["points"]]
        label = f"{'neurons M' if kind == 'M' else 'samples P'}: slope {part['slope']:.2f}"
        right.loglog(sizes, [point["seconds"] for point in part["points"]], marker="o", label=label)
    right.set_xlabel("size, times the smallest")
    right.set_ylabel("CPU seconds")
    if result["scaling"]:
        right.legend(fontsize=7)
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "nettrim"
    figure.savefig(RESULTS / "solver.svg", metadata={"Date": None})
    plt.close(figure)


def _page(result: dict[str, Any], body: str) -> str:
    return f"""# Benchmarks of the solver

Written by `make bench-solver`, which runs `benchmarks/solver.py`; raw figures in
[solver.json](../benchmarks/results/solver.json). {_what(result)}

![CPU time a neuron beside the rivals, and against neurons and samples](../benchmarks/results/solver.svg)

How it is measured:

- One torch thread. Times are CPU seconds of the process: of the whole solve, divided by the neurons that respond to any
  sample ("live"). Ours includes scaling, the factor, repair and certificate. In cases with rivals it is measured before
  and after them, and averaged.
- The general solvers get single neurons, through `nettrim.solvers.Cvxpy`, and are charged only for the solver itself,
  at the loosest setting of a ladder that reaches 1e-4: no modelling, no repair, no failed tries. A time limit stops
  them; then the ratio is that to their time so far, and "reached" says no.
- Accuracy is max(|gap|, violation) by our certificate. The general solvers' points are repaired by us first; the
  published ADMM, which has no repair, need only be feasible to 1e-4, where our answers are feasible to 1e-9.
- The published ADMM is written from the papers and batched as ours, in float64: in float32 its multipliers stall far
  from 1e-4. Its rho is the best of a small grid on four neurons; the search is not charged, nor are the checks that
  stop it.
- GEMMs are the solve's work in units of one product `inputs @ weight.T` of the layer.
- Blocks of 64 neurons unless `--full`: the cost of the factor is spread over fewer neurons than in a real layer.

{body}
"""


def _what(result: dict[str, Any]) -> str:
    note = f" {result['note']}" if result["note"] else ""
    return f"Mode: {result['mode']}. Data: {result['data']}. Machine: two shared CPU cores, one used.{note}"


def _aims(result: dict[str, Any]) -> list[str]:
    ours = [case["ours"] for case in result["cases"]]
    live = sum(entry["live"] for entry in ours)
    certified = sum(entry["certified"] * entry["live"] for entry in ours) / max(1, live)
    feasible = sum(entry["feasible"] * entry["live"] for entry in ours) / max(1, live)
    dense = sum(entry["dense"] for entry in ours)
    gemms = [case for case in result["cases"] if case["ours"]["columns"] >= 500]
    most = max((case["ours"]["gemms"] for case in gemms), default=float("nan"))
    over = sum(case["ours"]["gemms"] > 350 for case in gemms)
    scope = f"Over the {len(ours)} cases that were run."
    if result["skipped"]:
        scope += " Those named at the end were not, and a yes says nothing about them."
    lines = ["## Aims", "", scope, "", "| aim | measured here | reached |", "|---|---|---|"]
    seen = f"{100 * certified:.2f} % of {live}"
    lines.append(f"| 99.9 % of live neurons certified 1e-4 | {seen} | {_yes(certified >= 0.999)} |")
    lines.append(f"| all answers feasible in float64 | {100 * feasible:.2f} % | {_yes(feasible == 1)} |")
    seen = f"{dense} of {live} fell back on the dense weights"
    lines.append(f"| no answer made dense by its repair | {seen} | {_yes(dense == 0)} |")
    for name, factor in FACTORS.items():
        ratios = [case["rivals"][name]["ratio"] for case in result["cases"] if name in case["rivals"]]
        if ratios:
            seen = f"{min(ratios):.1f} to {max(ratios):.1f} times, {len(ratios)} cases"
            lines.append(f"| {name} takes {factor:g} times our time | {seen} | {_yes(min(ratios) >= factor)} |")
        else:
            lines.append(f"| {name} takes {factor:g} times our time | not measured | - |")
    if gemms:
        seen = f"at most {most:.0f}; {over} of {len(gemms)} cases above"
        lines.append(f"| 350 GEMMs at N >= 500 | {seen} | {_yes(most <= 350)} |")
    for kind, part in result["scaling"].items():
        times = part["points"][-1]["size"] / part["points"][0]["size"]
        seen = f"slope {part['slope']:.2f} over {times:.0f} times"
        lines.append(f"| time linear in {kind} | {seen} | {_yes(part['slope'] <= 1.1 and times >= 16)} |")
    return lines


def _ours(result: dict[str, Any]) -> list[str]:
    heads = COLUMNS + MORE
    lines = ["## This solver, default settings", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for case in result["cases"]:
        o = case["ours"]
        cells = (
            case["layer"], case["constraint"], case["epsilon"], case["budget"], o["samples"], o["live"],
            f"{o['seconds']:.3g}", f"{100 * o['certified']:.1f} %", o["dense"], f"{o['violation']:.1e}",
            f"{o['gemms']:.0f}", f"{o['nonzeros']:.1f} of {o['nonzeros_initial']:.0f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _rivals(result: dict[str, Any]) -> list[str]:
    heads = ("layer", "constraint", "eps", "rival", "neurons", "CPU s a neuron", "accuracy, worst", "reached 1e-4")
    heads += ("nonzeros", "times ours")
    lines = ["## Beside others", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for case in result["cases"]:
        for name, r in case["rivals"].items():
            reached = f"{100 * r['certified']:.0f} %" if "certified" in r else _yes(r["reached"])
            cells = (
                case["layer"], case["constraint"], case["epsilon"], name, r["neurons"], f"{r['seconds']:.3g}",
                f"{r['accuracy']:.1e}", reached, f"{r['nonzeros']:.1f}", f"{r['ratio']:.1f}",
            )  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _scaling(result: dict[str, Any]) -> list[str]:
    if not result["scaling"]:
        return []
    lines = ["## Scaling", "", "CPU seconds of the second layer, distance, eps .05, budget neuron.", ""]
    for kind, part in result["scaling"].items():
        steps = ", ".join(f"{point['size']:.0f}: {point['seconds']:.2f}" for point in part["points"])
        lines.append(f"- {kind}: {steps}; exponent {part['slope']:.2f}.")
    return [*lines, ""]


def _rest(result: dict[str, Any]) -> list[str]:
    if not result["skipped"]:
        return []
    return ["## Not run here", "", *(f"- {name}" for name in result["skipped"])]


def _short(layer: str) -> str:
    return layer.split(", ")[-1]


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"
