"""Latency on this machine, against the best dense engine; and the sparsity from which a sparse kernel wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from nettrim.errors import InputError, should
from nettrim.gain.chain import Step, csr
from nettrim.gain.checks import check_batch, check_batches, check_seconds, check_threads
from nettrim.gain.subject import Run, Subject, onnx_parts
from nettrim.gain.timing import Ratio, Timing, interleaved, ratio
from nettrim.models.batches import Batch
from nettrim.threads import torch_threads

BATCHES = (1, 16, 256)
_AGAIN = "dense again"


@dataclass(frozen=True, eq=False)
class Latency:
    """One batch size: the times of every stage on every engine, taken in turn in the same minutes."""

    batch: int
    threads: int
    times: dict[str, dict[str, Timing]]  # stage -> engine -> seconds of a batch
    again: Mapping[str, Timing] = field(default_factory=dict)  # copies of the dense engines, timed in the same rounds

    def best(self, stage: str) -> str:
        """The engine with the smallest median at a stage."""
        return min(self.times[stage], key=lambda engine: self.times[stage][engine].median)

    def seconds(self, stage: str) -> float:
        """The median of a stage's best engine."""
        return self.times[stage][self.best(stage)].median

    def gain(self, stage: str) -> Ratio:
        """How many times faster a stage is than the best dense engine on the dense network."""
        best = self.best("dense")
        return ratio(self.times["dense"][best], self.times[stage][self.best(stage)], self.again.get(best))

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's types."""
        stages = {
            stage: {
                "best": self.best(stage),
                "seconds": {e: {"median": t.median, "spread": list(t.spread)} for e, t in engines.items()},
            }
            for stage, engines in self.times.items()
        }
        for stage in stages:
            if stage != "dense":
                found = self.gain(stage)
                stages[stage]["faster"] = {
                    "median": found.median,
                    "interval": [found.low, found.high if math.isfinite(found.high) else None],
                    "least": found.least if math.isfinite(found.least) else None,
                }
                stages[stage]["verdict"] = found.verdict
        return {"batch": self.batch, "threads": self.threads, "stages": stages}


def latency(
    stages: Mapping[str, Subject],
    example: Batch,
    *,
    batches: Sequence[int] = BATCHES,
    thread_count: int | None = None,
    seconds: float = 1.0,
) -> list[Latency]:
    """Time every stage ("dense" and others) on every engine it has, `seconds` in all for each batch size.

    A dense stage runs on its dense engines only; the others also on the sparse kernels, and on dense engines where
    their shapes differ from the dense ones. Repeats are interleaved, after a warm-up, with a fixed number of threads.
    Where there is something to compare, copies of the dense engines run along: they show what is no difference.
    Raises InputError without a dense stage, and for batch sizes, threads or seconds that are none.
    """
    if "dense" not in stages:
        raise InputError(should("stages", 'one with "dense" to compare with', sorted(stages)))
    batches, thread_count, seconds = check_batches(batches), check_threads(thread_count), check_seconds(seconds)
    found = []
    copies = stages["dense"].again() if len(stages) > 1 else {}
    with torch_threads(thread_count) as count:
        for size in batches:
            batch = example.pick(torch.arange(size) % example.size)
            runs: dict[str, Run] = {}
            for stage, subject in stages.items():
                engines = _engines(stage, subject, stages["dense"])
                runs.update({f"{stage}\n{name}": prepare(batch) for name, prepare in engines.items()})
            runs.update({f"{_AGAIN}\n{name}": prepare(batch) for name, prepare in copies.items()})
            times: dict[str, dict[str, Timing]] = {stage: {} for stage in (*stages, _AGAIN)}
            for key, timing in interleaved(runs, seconds=seconds).items():
                stage, _, engine = key.partition("\n")
                times[stage][engine] = timing
            for stage in stages:  # a dense engine asks nothing about values: on the same shapes its time is the same
                if stage != "dense" and _same_shapes(stages[stage], stages["dense"]):
                    times[stage] = {**times["dense"], **times[stage]}
            again = times.pop(_AGAIN)
            found.append(Latency(size, count, times, again))
    return found


def _engines(stage: str, subject: Subject, dense: Subject) -> Mapping[str, Callable[[Batch], Run]]:
    """The engines that a stage is timed on."""
    if stage == "dense":
        return subject.dense
    return subject.sparse if _same_shapes(subject, dense) else {**subject.dense, **subject.sparse}


def _same_shapes(one: Subject, other: Subject) -> bool:
    return {name: t.shape for name, t in one.tensors.items()} == {name: t.shape for name, t in other.tensors.items()}


def break_even(
    shape: tuple[int, int],
    batch: int,
    *,
    thread_count: int | None = None,
    seconds: float = 0.1,
    steps: int = 6,
    lowest: float = 0.5,
    highest: float = 0.995,
) -> float | None:
    """The sparsity from which CSR beats the best dense product on random matrices of a layer's shape (out, in).

    Found by bisection between `lowest` and `highest`, with `seconds` of measurement at each of the steps, whose fastest
    runs are compared; None where CSR does not win even at `highest`, `lowest` where it always does.
    """
    check_batches(shape, "shape")
    check_batch(batch)
    check_seconds(seconds)
    with torch_threads(check_threads(thread_count)) as count:
        if not _sparse_wins(shape, batch, highest, count, seconds):
            return None
        if _sparse_wins(shape, batch, lowest, count, seconds):
            return lowest
        for _ in range(steps):
            middle = (lowest + highest) / 2
            if _sparse_wins(shape, batch, middle, count, seconds):
                highest = middle
            else:
                lowest = middle
    return round((lowest + highest) / 2, 3)


def _sparse_wins(shape: tuple[int, int], batch: int, sparsity: float, count: int, seconds: float) -> bool:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(shape, generator=generator)
    thin = dense * (torch.rand(shape, generator=generator) >= sparsity)
    inputs = torch.randn(batch, shape[1], generator=generator)
    features, matrix = inputs.T.contiguous(), csr(thin)
    bias, column = torch.zeros(shape[0]), torch.zeros(shape[0], 1)
    runs: dict[str, Callable[[], Any]] = {
        "PyTorch": lambda: F.linear(inputs, dense, bias),
        "CSR": lambda: (matrix @ features).add_(column),
    }
    parts = onnx_parts()
    if parts is not None:
        runner = parts.onnx_runner(parts.chain_model((Step(dense, bias),)), count)
        feeds = {"inputs": inputs.numpy()}
        runs["ONNX Runtime"] = lambda: runner(feeds)
    with torch.inference_mode():
        times = interleaved(runs, seconds=seconds, rounds=5)
    return times["CSR"].fastest < min(t.fastest for name, t in times.items() if name != "CSR")
