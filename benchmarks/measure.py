"""Measuring: each measurement in a forked process with a limit of CPU seconds, so that nothing hangs the benchmark."""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from problems import Case
from torch.utils.flop_counter import FlopCounterMode

import nettrim.solvers
from nettrim.solvers import Solution, Status, solve

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Answer:
    """What a child told, or why it told nothing."""

    value: Any = None
    exceeded: bool = False  # the limit of CPU seconds
    error: str = ""


def in_child(task: Callable[[], Any], limit: float) -> Answer:
    """`task()` in a forked process that the system ends after `limit` CPU seconds; its answer should be JSON."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
        try:
            told = {"value": task()}
        except Exception as error:  # reported by the parent
            told = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(writing, "w") as stream:
            json.dump(told, stream)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if text:
        return Answer(**json.loads(text))
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Answer(exceeded=True)
    return Answer(error=f"ended with code {code}")


def ours(case: Case) -> dict[str, Any]:
    """One solve at default settings, judged; seconds of CPU."""
    began = time.process_time()
    solution = solve(case.program, TOLERANCE, initial=case.initial)
    return {"seconds": time.process_time() - began} | judge(case, solution)


def judge(case: Case, solution: Solution) -> dict[str, Any]:
    """What can be said of a solution's live neurons, the others being zero whatever one does."""
    live = case.live.nonzero()[:, 0].tolist()
    states = {neuron: solution.status[neuron] for neuron in live}
    sizes = (solution.weight != 0).sum(dim=1)
    told = solution.certificate
    return {
        "certified": sum(state.certified for state in states.values()),
        "feasible": sum(state.feasible for state in states.values()),
        "fallback": sum(state is Status.DENSE for state in states.values()),
        "open": {str(neuron): state.name for neuron, state in states.items() if not state.certified},
        "gap": told.gap,
        "worst_gap": float(told.group_gap[case.program.groups][case.live].max()),
        "violation": told.violation,
        "iterations": solution.iterations,
        "gemms": solution.gemms,
        "nonzeros": {str(neuron): int(sizes[neuron]) for neuron in live},
    }


def work(case: Case) -> float:
    """All matrix work of one solve in units of `inputs @ weight.T` of the live neurons, counted by torch.

    Products, triangular solves and factors are counted at their floating-point operations, wherever they happen, in
    whatever precision; elementwise work, sorting and work outside torch are not.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_LINALG)
    with counter:
        solve(case.program, TOLERANCE, initial=case.initial)
    rows = int(case.live.sum())
    used = int((case.program.inputs != 0).any(dim=0).sum())
    return counter.get_total_flops() / (2 * case.program.samples * used * rows)


def _batch(shape: Any) -> int:
    return math.prod(shape[:-2])


def _cholesky(shape: Any, *_: Any, **__: Any) -> int:
    return _batch(shape) * shape[-1] ** 3 // 3


def _inverse(shape: Any, *_: Any, **__: Any) -> int:
    return _batch(shape) * 2 * shape[-1] ** 3 // 3


def _cholesky_solve(right: Any, shape: Any, *_: Any, **__: Any) -> int:
    return _batch(shape) * 2 * shape[-1] ** 2 * right[-1]


def _solve(shape: Any, right: Any, *_: Any, **__: Any) -> int:
    columns = right[-1] if len(right) == len(shape) else 1
    return _batch(shape) * (2 * shape[-1] ** 3 // 3 + 2 * shape[-1] ** 2 * columns)


def _triangular(right: Any, shape: Any, *_: Any, **__: Any) -> int:
    return _batch(shape) * shape[-1] ** 2 * right[-1]


def _product(shape: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(shape)


_ATEN = torch.ops.aten
_LINALG: dict[Any, Any] = {
    _ATEN.linalg_cholesky_ex: _cholesky,
    _ATEN.cholesky_inverse: _inverse,
    _ATEN.cholesky_solve: _cholesky_solve,
    _ATEN._linalg_solve_ex: _solve,
    _ATEN.triangular_solve: _triangular,
    _ATEN.mv: _product,
    _ATEN.dot: _product,
}


def unit() -> float:
    """CPU seconds of a fixed float32 product: what the machine can do just now."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1000, 1000, generator=generator) for _ in range(2))
    best = math.inf
    for _ in range(5):
        began = time.process_time()
        torch.mm(a, b)
        best = min(best, time.process_time() - began)
    return best


@cache
def fingerprint() -> str:
    """Tells whether the solver's code is still that of a measurement; call it first when the code has been loaded."""
    digest = hashlib.sha256()
    for path in sorted(Path(nettrim.solvers.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
