"""`python -m nettrim.gain`: from which sparsity on a sparse kernel wins on this machine, as a Markdown table.

With --itself: how often a network would be called faster than its own copy.
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import replace

import torch
from torch import nn

from nettrim.gain.latency import BATCHES, break_even, latency
from nettrim.gain.subject import onnx_parts, torch_subject
from nettrim.models.batches import normalise_batches

SHAPES = ("256x784", "300x300", "1024x1024", "4096x1024")


def main() -> None:
    """Measure every shape at every batch size and print one row a shape."""
    parser = argparse.ArgumentParser(prog="python -m nettrim.gain", description=__doc__)
    parser.add_argument("shapes", nargs="*", default=SHAPES, help="OUTxIN, of layers")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.3, help="of measurement at each step of a bisection")
    parser.add_argument("--itself", type=int, metavar="N", help="time a network N times against its copy instead")
    options = parser.parse_args()
    if options.itself:
        against_itself(options.itself, options.batches, options.threads, options.seconds)
        return
    engines = "PyTorch" if onnx_parts() is None else "the better of PyTorch and ONNX Runtime"
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}; dense: {engines}\n")
    print("| layer (out x in) | " + " | ".join(f"batch {size}" for size in options.batches) + " |")
    print("|---" * (1 + len(options.batches)) + "|")
    for name in options.shapes:
        out, _, inside = name.partition("x")
        cells = []
        for size in options.batches:
            found = break_even((int(out), int(inside)), size, thread_count=options.threads, seconds=options.seconds)
            cells.append("never" if found is None else f"{100 * found:.0f} %")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def against_itself(repeats: int, batches: list[int], threads: int, seconds: float) -> None:
    """Print how often a chain of Linear layers was called faster or slower than a copy of it."""
    verdicts = []
    for seed in range(repeats):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
        batch = normalise_batches([torch.randn(16, 128)], model=model)[0]
        dense, copy = (torch_subject(model, batch, threads=threads, export=False) for _ in range(2))
        copy = replace(copy, tensors={f"copy.{name}": tensor for name, tensor in copy.tensors.items()})
        stages = {"dense": dense, "copy": copy}
        found = latency(stages, batch, batches=batches, thread_count=threads, seconds=seconds)
        verdicts += [entry.gain("copy") for entry in found]
    faster, slower = (sum(getattr(verdict, word) for verdict in verdicts) for word in ("faster", "slower"))
    alone = sum(verdict.low > 1 or verdict.high < 1 for verdict in verdicts)
    print(f"{len(verdicts)} comparisons of a network with its copy: {faster} called faster, {slower} slower;")
    print(f"by the interval of the median alone {alone} would be called one or the other")


if __name__ == "__main__":
    main()
