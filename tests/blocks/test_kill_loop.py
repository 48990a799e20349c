"""Killed at random moments and resumed: benchmarks/kill_loop.py, a few runs of it."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_loop.py"


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["neuron", "layer"])
def test_killed_runs_end_with_the_same_bytes(budget):
    spec = importlib.util.spec_from_file_location("kill_loop", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_loop"] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    outcomes = module.loop(runs=3, scheme="cascade", workers=2, seed=1, budget=budget)
    assert sum(outcome.kills for outcome in outcomes) >= 1
    assert all(outcome.lines - outcome.blocks <= 2 * outcome.kills for outcome in outcomes)
