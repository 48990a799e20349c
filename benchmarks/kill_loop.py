"""Trims killed with SIGKILL at random moments and resumed until they finish: every one ends with the same bytes.

    make bench-kill
    python benchmarks/kill_loop.py [--runs 30] [--scheme parallel|cascade] [--budget neuron|layer] [--workers 2]

Prints one line a run and, at the end, what an uninterrupted run took and how much was done twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

CHILD = """
import sys, time
import torch
from torch import nn
import nettrim
from nettrim.blocks import split
from nettrim.executors.local import LocalExecutor
split._ROWS = split._JOINT_ROWS = 8  # blocks of a fraction of a second
scheme, budget, workers, checkpoint, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 4))
data = torch.randn(300, 24)
print("started", flush=True)
trimmed = nettrim.trim(model, data, epsilon=0.2, budget=budget, scheme=scheme, progress=False,
                       checkpoint=checkpoint, executor=LocalExecutor(workers))
trimmed.save(out)
"""


@dataclass(frozen=True)
class Outcome:
    """One trim, however often it was killed."""

    digest: str  # of the model and the proofs
    kills: int
    lines: int  # blocks solved, or parts of a joint budget in a round, repeated ones included
    blocks: int  # different ones
    seconds: float  # of the attempt that finished, imports not counted


def one(folder: Path, scheme: str, budget: str, workers: int, lives: list[float]) -> Outcome:
    """Run until it finishes; attempt k is killed after lives[k] seconds of work, later ones are left alone."""
    checkpoint, out = folder / "checkpoint", folder / "out"
    command = [sys.executable, "-c", CHILD, scheme, budget, str(workers), str(checkpoint), str(out)]
    kills, seconds = 0, 0.0
    for life in [*lives, None]:
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}) as child:
            assert child.stdout is not None
            child.stdout.readline()  # imports are done: moments are those of the work
            started = time.perf_counter()
            try:
                code = child.wait(life)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
                kills += 1
                continue
        if code != 0:
            raise SystemExit(f"a resumed trim failed with exit code {code}")
        seconds = time.perf_counter() - started
        break
    lines = [json.loads(line) for line in (checkpoint / "log.jsonl").read_text().splitlines()]
    made = Counter((line["layer"], line["block"], line.get("part"), line.get("round")) for line in lines)
    halves = [path.name for path in checkpoint.iterdir() if path.name.startswith(".")]
    if halves:
        raise SystemExit(f"half-written files were left: {halves}")
    names = ("model.safetensors", "proofs.safetensors")
    digest = hashlib.sha256(b"".join((out / name).read_bytes() for name in names)).hexdigest()
    return Outcome(digest, kills, len(lines), len(made), seconds)


def loop(runs: int, scheme: str, workers: int, seed: int, budget: str = "neuron") -> list[Outcome]:
    """An uninterrupted trim first, then `runs` killed ones; raises SystemExit when one differs."""
    generator = random.Random(seed)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        reference = one(Path(folder) / "reference", scheme, budget, workers, [])
        print(f"uninterrupted: {reference.seconds:.1f} s, {reference.blocks} blocks, {reference.digest[:16]}")
        for run in range(runs):
            lives = [generator.uniform(0, 0.7 * reference.seconds) for _ in range(generator.randint(1, 3))]
            outcome = one(Path(folder) / str(run), scheme, budget, workers, lives)
            again = outcome.lines - outcome.blocks
            print(f"run {run}: killed {outcome.kills} times, {again} blocks logged twice, {outcome.digest[:16]}")
            if outcome.digest != reference.digest or outcome.blocks != reference.blocks:
                raise SystemExit(f"run {run} ended differently: lives {lives}")
            outcomes.append(outcome)
    return outcomes


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--scheme", choices=["parallel", "cascade"], default="cascade")
    parser.add_argument("--budget", choices=["neuron", "layer"], default="neuron")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes = loop(options.runs, options.scheme, options.workers, options.seed, options.budget)
    kills = sum(outcome.kills for outcome in outcomes)
    print(f"{len(outcomes)} runs, {kills} kills: {len(outcomes)} identical results")


if __name__ == "__main__":
    main()
