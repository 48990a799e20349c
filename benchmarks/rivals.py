"""Solvers that one can install, on single neurons: CPU seconds in the solver itself, accuracy by our certificate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from cvxpy.reductions.solvers.solving_chain import SolvingChain

from nettrim.certificates import certify
from nettrim.programs import Program
from nettrim.solvers import Cvxpy, solve_lp


@contextmanager
def solver_clock() -> Iterator[list[float]]:
    """Collects the CPU seconds of every call of a solver by CVXPY: without modelling, without our own repair."""
    seconds: list[float] = []
    original = SolvingChain.solve_via_data

    def timed(self: Any, *arguments: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return original(self, *arguments, **options)
        finally:
            seconds.append(time.process_time() - began)

    SolvingChain.solve_via_data = timed
    try:
        yield seconds
    finally:
        SolvingChain.solve_via_data = original


def ladder(name: str, limit: float) -> list[dict[str, Any]]:
    """Settings from loose to tight: a rival is charged only for the loosest one that reaches the accuracy."""
    steps = (1e-4, 1e-5, 1e-6, 1e-7)
    if name == "SCS":
        return [{"eps_abs": s, "eps_rel": s, "max_iters": 10**6, "time_limit_secs": limit} for s in steps]
    if name == "OSQP":
        return [{"eps_abs": s, "eps_rel": s, "max_iter": 10**6, "time_limit": limit, "polish": False} for s in steps]
    return [{"tol_gap_abs": s, "tol_gap_rel": s, "tol_feas": s, "time_limit": limit} for s in (1e-5, 1e-7)]


def race(name: str, program: Program, neurons: list[int], tolerance: float, limit: float) -> dict[str, Any]:
    """Mean CPU seconds a neuron of the loosest settings within `tolerance`, and the worst accuracy reached."""
    seconds, accuracies, nonzeros = [], [], []
    for neuron in neurons:
        part = program.rows(torch.tensor([neuron]))
        spent, accuracy, size = 0.0, float("inf"), 0
        for options in ladder(name, limit):
            with solver_clock() as clock:
                solution = Cvxpy(name, **options).solve(part, tolerance)
            spent = clock[0] if clock else float("nan")  # further calls, after a failure, are not charged
            told = solution.certificate
            accuracy = max(abs(told.gap), told.violation)
            size = int((solution.weight != 0).sum())
            if accuracy <= tolerance or spent >= 0.4 * limit:
                break
        seconds.append(spent)
        accuracies.append(accuracy)
        nonzeros.append(size)
    return {
        "neurons": len(neurons),
        "seconds": sum(seconds) / len(seconds),
        "accuracy": max(accuracies),
        "reached": max(accuracies) <= tolerance,
        "nonzeros": sum(nonzeros) / len(nonzeros),
    }


def race_lp(program: Program, neurons: list[int]) -> dict[str, Any]:
    """HiGHS on the program with epsilon zero."""
    part = program.rows(torch.tensor(neurons))
    began = time.process_time()
    answer = solve_lp(part)
    spent = time.process_time() - began
    told = certify(part, answer.weight, answer.dual)
    accuracy = max(abs(told.gap), told.violation)
    return {
        "neurons": len(neurons),
        "seconds": spent / len(neurons),
        "accuracy": accuracy,
        "reached": accuracy <= 1e-4,
        "nonzeros": float((answer.weight != 0).sum()) / len(neurons),
    }
