"""What executors cost: one job on one thread, on two threads, in two processes and on two Ray workers.

    make bench-ray    (or: OMP_NUM_THREADS=1 python benchmarks/ray_overhead.py [--neurons 384] [--repeats 3])

Needs a quiet machine with two cores. The start of workers and their imports are timed apart, by a few short items; the
overhead is what the job then takes beyond half of the time of one thread. Prints one line a run and the medians; for a
budget of every neuron's own and for one of the layer, whose parts exchange a multiplier.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

import nettrim
from nettrim.executors import Executor, LocalExecutor, Processes, Ray

SAMPLES, WIDTH = 2000, 256


def job(neurons: int, budget: str, executor: Executor) -> tuple[float, torch.Tensor]:
    """(seconds, weights) of one layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, neurons), nn.ReLU())
    data = torch.randn(SAMPLES, WIDTH // 8) @ torch.randn(WIDTH // 8, WIDTH)
    started = time.perf_counter()
    trimmed = nettrim.trim(model, data, epsilon=0.2, budget=budget, holdout=0, progress=False, executor=executor)
    return time.perf_counter() - started, trimmed.layers[0].weight


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--neurons", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with Processes(2) as processes, Ray(workers=2) as ray:
        for name, executor in (("processes", processes), ("Ray and its workers", ray)):
            started = time.perf_counter()
            list(executor.map(abs, [1, 2, 3, 4]))
            print(f"start of {name}: {time.perf_counter() - started:.1f} s")
        kinds = (("one", LocalExecutor(1)), ("threads", LocalExecutor(2)), ("processes", processes), ("ray", ray))
        for budget, neurons in (("neuron", options.neurons), ("layer", max(512, options.neurons))):
            took: dict[str, list[float]] = {}
            for _ in range(options.repeats):
                answers = []
                for name, executor in kinds:
                    seconds, weight = job(neurons, budget, executor)
                    took.setdefault(name, []).append(seconds)
                    answers.append(weight)
                    print(f"budget {budget}, {name}: {seconds:.1f} s", flush=True)
                assert all(torch.equal(answers[0], answer) for answer in answers)
            middle = {name: statistics.median(seconds) for name, seconds in took.items()}
            for name in ("threads", "processes", "ray"):
                over = middle[name] / (middle["one"] / 2) - 1
                print(f"budget {budget}: one {middle['one']:.1f} s, {name} {middle[name]:.1f} s, {over:+.0%} over half")


if __name__ == "__main__":
    main()
