"""What a warm-started path of epsilons costs: ten values, a factor of ten or of three apart, beside single solves.

    make bench-path    (or: OMP_NUM_THREADS=1 python benchmarks/path.py [--rows 64] [--epsilons 10] [--budgets neuron])

CPU time of the process on one thread, of layer 2 of the small network: each program warm-started from the one before,
as `solve_path` does, and then alone, so that other work on the machine disturbs both alike. Writes results/path.json,
which the solver's page reads.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from cases import CONSTRAINTS
from problems import layer_case, net
from torch import Tensor

from nettrim.solvers import solve, solve_path

RESULT = Path(__file__).parent / "results" / "path.json"
TOLERANCE = 1e-4
SPANS = ((0.02, 0.2), (0.05, 0.15))  # of the responses' norm


def measure(constraint: str, budget: str, span: tuple[float, float], rows: int, count: int) -> dict[str, object]:
    """Seconds of every step of the path, and of every program alone, with how many neurons each left uncertified."""
    case = layer_case(net("small"), 1, 1.0, constraint, budget=budget, rows=rows)
    shares = torch.logspace(math.log10(span[0]), math.log10(span[1]), count).tolist()
    epsilons = [share * case.program.epsilon for share in shares]
    path, single, answers = [], [], []

    def timed() -> Iterator[Tensor]:
        """The epsilons; the path asks for the next one when it is done with the last."""
        for epsilon in epsilons:
            began = time.process_time()
            yield epsilon
            path.append(round(time.process_time() - began, 3))
            began = time.process_time()
            answers.append(solve(replace(case.program, epsilon=epsilon), TOLERANCE))
            single.append(round(time.process_time() - began, 3))

    answers.extend(solve_path(case.program, timed(), TOLERANCE))
    uncertified = sum(not state.certified for answer in answers for state in answer.status)
    ratio = sum(path) / (sum(single) / count)
    told = {"constraint": constraint, "budget": budget, "span": span, "live": int(case.live.sum()), "epsilons": count}
    return told | {"path": path, "single": single, "ratio": round(ratio, 2), "uncertified": uncertified}


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=64, help="neurons of the layer")
    parser.add_argument("--epsilons", type=int, default=10)
    parser.add_argument("--budgets", nargs="+", default=["neuron", "layer"], choices=["neuron", "layer"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    solve(layer_case(net("small"), 1, 0.1, "distance", rows=2).program, TOLERANCE)  # imports and first allocations
    results = []
    for constraint in CONSTRAINTS:
        for budget, span in product(options.budgets, SPANS):
            told = measure(constraint, budget, span, options.rows, options.epsilons)
            results.append(told)
            print(
                f"{constraint}, budget {budget}, {told['live']} neurons: {options.epsilons} epsilons from {span[0]} to "
                f"{span[1]} cost {told['ratio']} single solves, {told['uncertified']} answers uncertified",
                flush=True,
            )
            RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
