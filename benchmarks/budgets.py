"""What a budget that neurons share costs beside budgets of their own: one layer each, clusters of 8 and the whole.

    make bench-budgets    (or: OMP_NUM_THREADS=1 python benchmarks/budgets.py [--only small-2 ...])

CPU time of the process on one thread, the same layer by all budgets in turn. Many and few samples, neurons and inputs,
small epsilons and large ones: a joint budget is as hard as its hardest neuron, so this is where a solver has cliffs.
Writes results/budgets.json, which the solver's page reads too; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path

import torch
from cases import CONSTRAINTS
from problems import layer_case, net

from nettrim.solvers import solve

RESULT = Path(__file__).parent / "results" / "budgets.json"
TOLERANCE = 1e-4
LAYERS = {  # name: network, layer, neurons, samples (None: all)
    "small-2": ("small", 1, 64, None),
    "small-2-M200": ("small", 1, 200, None),
    "small-2-P200": ("small", 1, 64, 200),
    "small-1-P1500": ("small", 0, 32, 1500),
    "digits-2-M200": ("digits", 1, 200, None),
    "digits-1": ("digits", 0, 64, None),
}
EPSILONS = (0.005, 0.02, 0.05, 0.15)
BUDGETS = ("neuron", 8, "layer")


def measure(name: str, constraint: str, epsilon: float) -> dict[str, object]:
    """CPU seconds by every budget, and how many neurons each left uncertified."""
    of, layer, rows, samples = LAYERS[name]
    told: dict[str, object] = {"case": name, "constraint": constraint, "epsilon": epsilon}
    for budget in BUDGETS:
        case = layer_case(net(of), layer, epsilon, constraint, budget=budget, rows=rows, samples=samples)
        began = time.process_time()
        answer = solve(case.program, TOLERANCE, initial=case.initial)
        told[f"{budget} seconds"] = round(time.process_time() - began, 2)
        told[f"{budget} uncertified"] = sum(not state.certified for state in answer.status)
    return told


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--again", action="store_true", help="measure what is on disk once more")
    options = parser.parse_args()
    torch.set_num_threads(1)
    solve(layer_case(net("small"), 1, 0.1, "distance", rows=2).program, TOLERANCE)  # imports and first allocations
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else []
    found = {(told["case"], told["constraint"], told["epsilon"]): told for told in kept}
    for place in product(options.only, CONSTRAINTS, EPSILONS):
        if place in found and not options.again:
            continue
        found[place] = told = measure(*place)
        print(", ".join(f"{key} {value}" for key, value in told.items()), flush=True)
        RESULT.write_text(json.dumps(list(found.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
