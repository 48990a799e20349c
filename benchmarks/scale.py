"""The cost model of docs/scale.md: fitted to small blocks of neurons, tried on larger ones, then projected.

    OMP_NUM_THREADS=1 python benchmarks/scale.py

One block is M neurons with budgets of their own, N inputs, P samples, solved and refitted on one thread. Model:

    seconds = design * P N^2  +  samples * P M  +  products * P N M  +  supports * P N^2 M

the Gram matrix and its factor once a block; what is done to every sample of every neuron; ADMM's products with the
samples; the Newton steps of polish and refit, whose Gram matrices have the size of a neuron's support. Processor
seconds, so that a busy machine does not count.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from scipy.optimize import nnls

from nettrim.blocks.split import parts_of
from nettrim.blocks.work import LayerWork
from nettrim.layerwise import LayerTask
from nettrim.models.base import Layer
from nettrim.recipe import Recipe

FIT = (
    (1000, 64, 16), (1000, 128, 32), (2000, 64, 32), (2000, 128, 8), (2000, 256, 4), (2000, 256, 16), (3000, 128, 16),
    (3000, 192, 16), (1000, 256, 32), (4000, 64, 16),
)  # fmt: skip
TRY = ((4000, 384, 32), (8000, 512, 32))


def measure(samples: int, width: int, rows: int, refit: bool = True) -> tuple[float, float, float]:
    """(processor seconds, share of weights kept, largest iterations) of one block on correlated non-negative inputs."""
    generator = torch.Generator().manual_seed(samples + width + rows)
    mixing = torch.randn(width // 8, width, generator=generator) / (width / 8) ** 0.5
    inputs = torch.randn(samples, width // 8, generator=generator) @ mixing
    inputs = (inputs + 0.1 * torch.randn(samples, width, generator=generator)).relu()
    weight = torch.randn(2 * rows, width, generator=generator) / width**0.5
    layer = Layer("fc", "Linear", (2 * rows, width), "relu", weight, None)
    recipe = Recipe(epsilon=0.2, budget="neuron", refit=refit)
    task = LayerTask(layer, inputs[None], None, None, recipe)
    (part,) = parts_of(task, (range(rows), range(rows, 2 * rows)), [0], lambda tensor: tensor)
    started = time.process_time()
    outcome = LayerWork().part(part)
    seconds = time.process_time() - started
    return seconds, outcome.result.nonzeros_after / weight[:rows].numel(), outcome.result.iterations


def features(samples: int, width: int, rows: int) -> list[float]:
    """The model's terms, in units of 1e9."""
    sizes = (samples * width**2, samples * rows, samples * width * rows, samples * width**2 * rows)
    return [size / 1e9 for size in sizes]


def main() -> None:
    """Fit, then predict before measuring."""
    torch.set_num_threads(1)
    measure(300, 32, 4)
    times = []
    for size in FIT:
        seconds, kept, iterations = measure(*size)
        times.append(seconds)
        print(f"fit   P N M = {size}: {seconds:.2f} s, {kept:.2f} kept, {iterations} iterations", flush=True)
    matrix = np.array([features(*size) for size in FIT])
    weights = 1 / np.array(times)  # relative errors count
    found, _ = nnls(matrix * weights[:, None], np.ones(len(times)))
    print("design, samples, products, supports [s per 1e9] =", np.round(found, 4).tolist())
    for size in TRY:
        predicted = float(np.dot(features(*size), found))
        print(f"try   P N M = {size}: predicted {predicted:.1f} s", flush=True)
        seconds, kept, iterations = measure(*size)
        error = predicted / seconds - 1
        print(f"      measured {seconds:.1f} s ({error:+.0%}), {kept:.2f} kept, {iterations} iterations", flush=True)


if __name__ == "__main__":
    main()
