"""What Ray costs: one job on one thread, on two threads and on two Ray workers of this machine.

    make bench-ray    (or: OMP_NUM_THREADS=1 python benchmarks/ray_overhead.py [--neurons 384] [--repeats 3])

Needs a quiet machine with two cores. Ray's start and the workers' imports are timed apart, by a few short items; the
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
from nettrim.executors import Executor, LocalExecutor, Ray

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
    with Ray(workers=2) as ray:
        started = time.perf_counter()
        list(ray.map(abs, [1, 2, 3, 4]))
        print(f"start of Ray and its workers: {time.perf_counter() - started:.1f} s")
        for budget, neurons in (("neuron", options.neurons), ("layer", max(512, options.neurons))):
            took: dict[str, list[float]] = {}
            for _ in range(options.repeats):
                answers = []
                for name, executor in (("one", LocalExecutor(1)), ("threads", LocalExecutor(2)), ("ray", ray)):
                    seconds, weight = job(neurons, budget, executor)
                    took.setdefault(name, []).append(seconds)
                    answers.append(weight)
                    print(f"budget {budget}, {name}: {seconds:.1f} s", flush=True)
                assert all(torch.equal(answers[0], answer) for answer in answers)
            one, threads, cluster = (statistics.median(took[name]) for name in ("one", "threads", "ray"))
            print(f"budget {budget}: one thread {one:.1f} s, two threads {threads:.1f} s, two workers {cluster:.1f} s")
            print(f"budget {budget}: {cluster / (one / 2) - 1:+.0%} over half of one thread")


if __name__ == "__main__":
    main()
