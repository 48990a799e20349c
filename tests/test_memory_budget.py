"""A layer whose samples are four times larger than the memory budget is trimmed within it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc"),
]

WATCH = """
import threading

ended, before, peak = threading.Event(), 0, 0

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

def watch():
    global peak
    while not ended.wait(0.001):
        peak = max(peak, status("RssAnon"))

def start():
    global before
    before, watcher = status("RssAnon"), threading.Thread(target=watch)
    watcher.start()
    return watcher

def stop(watcher):
    ended.set()
    watcher.join()
    return peak - before
"""

RUN = """
import json, sys
import torch
from torch import nn
import nettrim
from nettrim.certificates import certify
from nettrim.executors import LocalExecutor
from nettrim.layerwise import Means
from nettrim.solvers import Solution, Status

rows, budget, solving = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "solving"

def dense(self, program, tolerance, initial, warm=None):
    dual = torch.zeros_like(program.upper)
    return Solution(initial, dual, (Status.DENSE,) * len(initial), certify(program, initial, dual))

if not solving:
    Means.solve = dense

model = nn.Sequential(nn.Linear(8, 255), nn.ReLU(), nn.Linear(255, 4), nn.ReLU())  # 255 inputs and the bias's ones

def run(data, memory):
    return nettrim.trim(model, data, epsilon=0.3, budget="neuron", targets="2", holdout=0, refit=solving,
                        tolerance=1e-2, progress=False, memory_budget=memory, executor=LocalExecutor(1))

torch.manual_seed(0)
run(torch.randn(500, 8), None)  # what a first run loads
data = torch.randn(rows, 8)
watcher = start()
trimmed = run(data, budget)
grown = stop(watcher)
print(json.dumps({"anonymous": grown, "high_water": status("VmHWM"), "gap": trimmed.layers[0].result.gap}))
"""

MANY = """
import json, sys
import torch
from nettrim import Program
from nettrim.solvers import solve

samples, inputs, neurons, budget, constraint = *map(int, sys.argv[1:5]), sys.argv[5]
generator = torch.Generator().manual_seed(0)
x = torch.randn(samples, inputs // 2, generator=generator) @ torch.randn(inputs // 2, inputs, generator=generator)
x = (x / inputs**0.5).relu()
y = (x @ torch.randn(neurons, inputs, generator=generator).T / inputs**0.5).relu()

def run(count):
    epsilon = 0.05 * y[:, :count].double().norm(dim=0)
    return solve(Program.relu(x, y[:, :count], epsilon, constraint, budget="neuron"), 1e-3, memory_budget=budget)

run(2)  # what a first run loads
watcher = start()
solution = run(neurons)
grown = stop(watcher)
certified = sum(state.certified for state in solution.status)
print(json.dumps({"anonymous": grown, "certified": certified}))
"""

_NEURON = 64 * 8  # bytes a sample: the working arrays of one neuron, which no budget can do without
_FIXED = 32 << 20  # bytes of temporaries whose size depends on no layer


def measure(*arguments, script=RUN):
    """Bytes by which the process grew, at most; without pages of mapped files, which the kernel drops at need."""
    run = subprocess.run(
        [sys.executable, "-c", WATCH + script, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},  # what is freed leaves
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    print(found)
    return found


def test_all_but_the_solver_keeps_the_budget():
    """Capture, program, certificate and measures: 268 MB of inputs, 67 MB of budget."""
    rows = 1 << 18
    budget = rows * 256 * 4 // 4
    assert measure(rows, budget, "not solving")["anonymous"] <= budget + _FIXED


def test_without_a_budget_the_samples_are_in_memory():
    """The measurement would notice."""
    rows = 1 << 17
    assert measure(rows, 1 << 40, "not solving")["anonymous"] >= rows * 256 * 4


def test_a_layer_is_trimmed_within_the_budget():
    rows = 1 << 16
    budget = rows * 256 * 4 // 4
    found = measure(rows, budget, "solving")
    assert found["gap"] <= 1e-2
    assert found["anonymous"] <= budget + _FIXED + rows * _NEURON


@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_many_neurons_are_solved_within_the_budget(constraint):
    """Their Gram matrices alone would take six times the budget together."""
    samples, inputs, neurons, budget = 2000, 400, 300, 1 << 26
    assert neurons * inputs**2 * 8 > 5 * budget
    found = measure(samples, inputs, neurons, budget, constraint, script=MANY)
    assert found["certified"] == neurons
    program = neurons * (samples + inputs) * 8  # the answer and its multipliers, in a few copies
    assert found["anonymous"] <= budget + _FIXED + 4 * program
