"""What executors cost: one job on one thread, on two threads, in two processes and on two Ray workers.

    make bench-ray    (or: OMP_NUM_THREADS=1 python benchmarks/ray_overhead.py [--neurons 384] [--repeats 3])
    make bench-ray BENCH_ARGS="--budgets neuron --kinds one threads processes --samples 8000 --width 784"

Needs a quiet machine with two cores. The start of workers and their imports are timed apart, by a few short items; the
overhead is what the job then takes beyond half of the time of one thread. Prints one line a run and the medians; for a
budget of every neuron's own and for one of the layer, whose parts exchange a multiplier.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

import nettrim
from nettrim.executors import Executor, LocalExecutor, Processes, Ray

KINDS: dict[str, Callable[[], Any]] = {
    "one": partial(LocalExecutor, 1),
    "threads": partial(LocalExecutor, 2),
    "processes": partial(Processes, 2),
    "ray": partial(Ray, workers=2),
}


def job(size: tuple[int, int, int], budget: str, executor: Executor) -> tuple[float, torch.Tensor]:
    """(seconds, weights) of one layer of size (samples, inputs, neurons)."""
    samples, width, neurons = size
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, neurons), nn.ReLU())
    data = torch.randn(samples, width // 8) @ torch.randn(width // 8, width)
    started = time.perf_counter()
    trimmed = nettrim.trim(model, data, epsilon=0.2, budget=budget, holdout=0, progress=False, executor=executor)
    return time.perf_counter() - started, trimmed.layers[0].weight


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--width", type=int, default=256, help="inputs of the layer")
    parser.add_argument("--neurons", type=int, default=384, help="at least 512 for the budget of the layer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budgets", nargs="+", choices=("neuron", "layer"), default=("neuron", "layer"))
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    options = parser.parse_args()
    with ExitStack() as stack:
        kinds: dict[str, Executor] = {name: stack.enter_context(KINDS[name]()) for name in ("one", *options.kinds)}
        for name in ("processes", "ray"):
            if name in kinds:
                started = time.perf_counter()
                list(kinds[name].map(abs, [1, 2, 3, 4]))
                print(f"start of {name}: {time.perf_counter() - started:.1f} s")
        for budget in options.budgets:
            neurons = max(512, options.neurons) if budget == "layer" else options.neurons
            size = (options.samples, options.width, neurons)
            took: dict[str, list[float]] = {}
            for _ in range(options.repeats):
                answers = []
                for name, executor in kinds.items():
                    seconds, weight = job(size, budget, executor)
                    took.setdefault(name, []).append(seconds)
                    answers.append(weight)
                    print(f"budget {budget}, {name}: {seconds:.1f} s", flush=True)
                assert all(torch.equal(answers[0], answer) for answer in answers)
            middle = {name: statistics.median(seconds) for name, seconds in took.items()}
            for name in (name for name in kinds if name != "one"):
                over = middle[name] / (middle["one"] / 2) - 1
                print(f"budget {budget}: one {middle['one']:.1f} s, {name} {middle[name]:.1f} s, {over:+.0%} over half")


if __name__ == "__main__":
    main()
