"""`python -m nettrim.gain`: from which sparsity on a sparse kernel wins on this machine, as a Markdown table."""

from __future__ import annotations

import argparse
import platform

import torch

from nettrim.gain.latency import BATCHES, break_even
from nettrim.gain.subject import onnx_parts

SHAPES = ("256x784", "300x300", "1024x1024", "4096x1024")


def main() -> None:
    """Measure every shape at every batch size and print one row a shape."""
    parser = argparse.ArgumentParser(prog="python -m nettrim.gain", description=__doc__)
    parser.add_argument("shapes", nargs="*", default=SHAPES, help="OUTxIN, of layers")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.3, help="of measurement at each step of a bisection")
    options = parser.parse_args()
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


if __name__ == "__main__":
    main()
