"""The solver beside general ones and the published ADMM: same problems, same machine, same run, CPU time.

    python benchmarks/solver.py [--full] [--limit SECONDS] [--rows 64]

Writes benchmarks/results/solver.json, solver.md, solver.svg and the table in docs/benchmarks.md. The networks are
trained here, on MNIST where NETTRIM_DATA names a folder with it, on scikit-learn's digits otherwise. When the limit of
wall-clock seconds has passed, what is left is skipped, and named.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from problems import Case, Net, cascade_case, images, layer_case, load_digits_instead, train, trimmed_inputs
from published_admm import PublishedAdmm, best_rho
from rivals import race, race_lp
from solver_report import write

from nettrim.solvers import Status, solve

TOLERANCE = 1e-4
EPSILONS = (0.02, 0.05, 0.15)


def measure(case: Case) -> dict[str, Any]:
    """One solve at default settings."""
    began = time.process_time()
    solution = solve(case.program, TOLERANCE, initial=case.initial)
    seconds = time.process_time() - began
    live = case.live
    count = int(live.sum())
    states = [state for state, alive in zip(solution.status, live.tolist(), strict=True) if alive]
    sizes = (solution.weight != 0).sum(dim=1)[live].double()
    columns = int((case.program.inputs != 0).any(dim=0).sum())
    return {
        "rows": case.program.shape[0],
        "live": count,
        "columns": columns,
        "samples": case.program.samples,
        "seconds": seconds / max(1, count),
        "total": seconds,
        "certified": sum(state.certified for state in states) / max(1, count),
        "feasible": sum(state.feasible for state in states) / max(1, count),
        "dense": sum(state is Status.DENSE for state in states),
        "gap": solution.certificate.gap,
        "violation": solution.certificate.violation,
        "gemms": solution.gemms,
        "iterations": solution.iterations,
        "nonzeros": float(sizes.mean()) if count else 0.0,
        "nonzeros_initial": float((case.initial != 0).sum(dim=1)[live].double().mean()) if count else 0.0,
        "dual_norm": float(solution.dual.double().norm(dim=0)[live].median()) if count else 0.0,
    }


def compete(case: Case, ours: dict[str, Any], full: bool, limit: float) -> dict[str, Any]:
    """The rivals on the first live neurons, and the published ADMM on the first 8 (all with --full)."""
    neurons = case.live.nonzero()[:, 0].tolist()
    few = neurons[: 4 if full else 1]
    rivals = {"SCS": race("SCS", case.program, few, TOLERANCE, limit)}
    rivals["Clarabel"] = race("CLARABEL", case.program, neurons[:1], TOLERANCE, limit)
    batch = torch.tensor(neurons if full else neurons[:8])
    part = case.program.rows(batch)
    factors = (0.2, 1.0, 4.0, 16.0, 64.0) if full else (1.0, 4.0, 16.0)
    rho = best_rho(part, case.initial[batch], factors)
    outcome = PublishedAdmm(rho, 2000).solve(part, TOLERANCE)
    good = outcome.accuracy <= TOLERANCE
    rivals["published ADMM"] = {
        "neurons": len(batch),
        "seconds": outcome.seconds / len(batch),
        "accuracy": float(outcome.accuracy.max()),
        "reached": bool(good.all()),
        "certified": float(good.double().mean()),
        "nonzeros": float(outcome.nonzeros.double().mean()),
        "iterations": outcome.iterations,
    }
    for rival in rivals.values():
        rival["ratio"] = rival["seconds"] / ours["seconds"]
    return rivals


def regularised(case: Case, ours: dict[str, Any], limit: float) -> tuple[Case, dict[str, Any], dict[str, Any]]:
    """The same layer with lambda (N eq. 11) near the multipliers of its balls, beside OSQP."""
    assert case.program.epsilon is not None
    live = case.live
    strength = ours["dual_norm"] / (2 * float(case.program.epsilon[case.program.groups][live].median()))
    program = replace(case.program, epsilon=None, regularization=strength)
    other = replace(case, name=f"{case.layer}, regularised, lambda {strength:.3g}", program=program, epsilon="lambda")
    result = measure(other)
    osqp = race("OSQP", program, live.nonzero()[:1, 0].tolist(), TOLERANCE, limit)
    osqp["ratio"] = osqp["seconds"] / result["seconds"]
    return other, result, {"OSQP": osqp}


def exact(net: Net, layer: int, rows: int) -> tuple[Case, dict[str, Any], dict[str, Any]]:
    """Epsilon zero on few samples: our default against HiGHS alone."""
    case = layer_case(net, layer, 0.0, "strict", "neuron", rows, samples=200)
    result = measure(case)
    highs = race_lp(case.program, case.live.nonzero()[:4, 0].tolist())
    highs["ratio"] = highs["seconds"] / result["seconds"]
    return case, result, {"HiGHS": highs}


def cases(net: Net, other: Net, rows: int, full: bool) -> Iterator[Case]:
    """The most telling first: when the limit cuts, it cuts the end."""
    first, second = 0, 1
    everyone = 10**6
    yield layer_case(net, second, 0.05, "distance", "neuron", rows, compete=True)
    yield layer_case(net, second, 0.05, "strict", "neuron", rows, compete=True)
    yield layer_case(net, first, 0.05, "distance", "neuron", rows, compete=True)
    yield layer_case(net, first, 0.05, "strict", "neuron", rows, compete=full)
    for constraint in ("distance", "strict"):
        yield layer_case(net, second, 0.05, constraint, "layer", rows)
        yield layer_case(net, second, 0.05, constraint, "neuron", rows, samples=200)
    trimmed = trimmed_inputs(net, first)
    for variant in ("distance", "positive", "published"):
        yield cascade_case(net, trimmed, second, variant, rows)
    for constraint in ("distance", "strict"):
        for layer in range(2):
            yield layer_case(other, layer, 0.05, constraint, "neuron", rows)
    for layer in (second, first):
        for epsilon in (0.15, 0.02):
            for constraint in ("distance", "strict"):
                yield layer_case(net, layer, epsilon, constraint, "neuron", rows)
    for constraint in ("distance", "strict"):
        yield layer_case(net, first, 0.05, constraint, "neuron", rows, samples=400)
        yield layer_case(net, first, 0.05, constraint, "layer", rows)
    yield layer_case(net, len(net.weights) - 1, 0.05, "distance", "neuron", everyone)


def scaling(net: Net, kind: str) -> list[dict[str, float]]:
    """CPU time of layer 2 against neurons or samples over a 16-fold range; distance, .05."""
    points = []
    available = len(net.inputs[1])
    for step in range(5):
        rows, samples = (16 << step, available // 4) if kind == "M" else (64, available >> (4 - step))
        if kind == "M" and rows > net.weights[1].shape[0]:
            break
        result = measure(layer_case(net, 1, 0.05, "distance", "neuron", rows, samples=samples))
        points.append({"size": float(rows if kind == "M" else samples), "seconds": result["total"]})
    return points


def slope(points: list[dict[str, float]]) -> float:
    """Least-squares exponent in log-log."""
    xs = [math.log(point["size"]) for point in points]
    ys = [math.log(point["seconds"]) for point in points]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all rows, deeper nets, more rivals; hours")
    parser.add_argument("--quick", action="store_true", help="the default")
    parser.add_argument("--limit", type=float, default=None, help="wall-clock seconds (300; none with --full)")
    parser.add_argument("--rows", type=int, default=64, help="neurons of a layer, without --full")
    parser.add_argument("--note", default="", help="a sentence on the state of the machine, for the report")
    arguments = parser.parse_args()
    full = arguments.full
    torch.set_num_threads(1)
    limit = arguments.limit or (math.inf if full else 300.0)
    began = time.monotonic()
    rows = 10**6 if full else arguments.rows
    data, digits = images(), load_digits_instead()
    fit, epochs = (60_000, 10) if full else (10_000, 6)
    net = train(data, (300, 300), 8000, fit, epochs)
    other = train(digits, (300, 300), 1500, 1500, 40, seed=1)
    result: dict[str, Any] = {
        "mode": "full" if full else "quick",
        "data": data.source.name,
        "note": arguments.note,
        "torch": torch.__version__,
        "cases": [],
        "scaling": {},
        "skipped": [],
    }

    def left() -> float:
        return limit - (time.monotonic() - began)

    def record(case: Case, ours: dict[str, Any], rivals: dict[str, Any]) -> None:
        entry = {key: getattr(case, key) for key in ("name", "layer", "constraint", "epsilon", "budget")}
        result["cases"].append(entry | {"ours": ours, "rivals": rivals})
        write(result)
        print(f"{case.name}: {ours['seconds']:.4f} s, certified {ours['certified']:.4f}", flush=True)
        for name, rival in rivals.items():
            print(f"    {name}: {rival['seconds']:.3f} s, {rival['accuracy']:.1e}, {rival['ratio']:.1f} x", flush=True)

    def run(case: Case, until: float = 0.0) -> None:
        if left() <= until:
            result["skipped"].append(case.name)
            return
        record(case, measure(case), {})

    def run_beside(case: Case) -> None:
        """Ours before and after the rivals, so that a drift of the machine shows."""
        if left() <= 0:
            result["skipped"].append(f"rivals on {case.name}")
            return
        ours = measure(case)
        rivals = compete(case, ours, full, 600.0 if full else min(40.0, max(5.0, left() / 4)))
        again = measure(case)
        mean = (ours["seconds"] + again["seconds"]) / 2
        for rival in rivals.values():
            rival["ratio"] *= ours["seconds"] / mean
        ours |= {"seconds": mean, "seconds_before_and_after": [ours["seconds"], again["seconds"]]}
        record(case, ours, rivals)

    reserved = 0.0 if full else 0.45 * limit  # for scaling and rivals
    raced = []
    for case in cases(net, other, rows, full):
        if case.compete:
            raced.append(case)
        else:
            run(case, reserved)
    run_beside(raced[0])
    for kind in ("M", "P"):
        if left() > 0:
            points = scaling(net, kind)
            result["scaling"][kind] = {"points": points, "slope": slope(points)}
            print(f"time ~ {kind}^{slope(points):.2f}", flush=True)
        else:
            result["skipped"].append(f"time against {kind}")
    if left() > 0:
        record(*exact(net, 1, 16))
    else:
        result["skipped"].append("epsilon 0, HiGHS")
    for case in raced[1:]:
        run_beside(case)
    if left() > 0:
        record(*regularised(raced[0], measure(raced[0]), 600.0 if full else 30.0))
    else:
        result["skipped"].append("regularised form, OSQP")
    if full and data.source.name == "MNIST":
        deep = train(data, (300, 1000, 300), 8000, fit, epochs, seed=2)
        for layer in range(3):
            for constraint in ("distance", "strict"):
                run(layer_case(deep, layer, 0.05, constraint, "neuron", rows))
    else:
        result["skipped"].append("784-300-1000-300-10 (only with --full, on MNIST)")
    write(result)


if __name__ == "__main__":
    main()
