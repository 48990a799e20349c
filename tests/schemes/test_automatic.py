"""Which executor a trim without one gets, and that the answer does not depend on it."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import nettrim
from nettrim.executors import LocalExecutor, Processes, Shard
from nettrim.models.base import Layer
from nettrim.recipe import Recipe
from nettrim.schemes import automatic
from nettrim.schemes.automatic import fitting_executor, running

loky = pytest.mark.skipif(importlib.util.find_spec("loky") is None, reason="no loky")


def layer(out, width, name="0", shape=None):
    return Layer(name, "Linear", shape or (out, width), "relu", torch.ones(out, width), None)


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    monkeypatch.setattr(automatic, "processors", lambda: 4)


@pytest.fixture
def no_loky(monkeypatch):
    monkeypatch.setattr(automatic, "find_spec", lambda name: None)


NEURON = Recipe(epsilon=0.1, budget="neuron")


@loky
def test_long_work_goes_to_processes():
    chosen = fitting_executor([layer(1000, 10)], NEURON, 100)
    assert isinstance(chosen, Processes) and chosen.workers == 4
    assert fitting_executor([layer(300, 10)], NEURON, 100).workers == 4  # five blocks of 60
    assert fitting_executor([layer(130, 10), layer(130, 10, "1")], NEURON, 100).workers == 4


@loky
@pytest.mark.parametrize("how", ["short", "alone", "shares", "room", "daemon"])
def test_what_keeps_work_in_this_process(how, monkeypatch):
    layers, options = [layer(300, 10)], {}
    if how == "short":
        layers = [layer(200, 10)]
    elif how == "room":
        monkeypatch.setattr(automatic.shutil, "disk_usage", lambda folder: Room(23000))  # 100 samples take 4,000 bytes
        layers = [layer(300, 10), layer(300, 20, "1")]
    elif how == "daemon":
        monkeypatch.setattr(automatic.multiprocessing.current_process(), "_config", {"daemon": True})
    else:
        options = {"alone": True} if how == "alone" else {"shares": 2}
    chosen = fitting_executor(layers, NEURON, 100, **options)
    assert isinstance(chosen, LocalExecutor) and chosen.workers == 1


@dataclass
class Room:
    free: int


def test_one_thread_on_a_gpu():
    """Large layers too, by the device that programs are solved on or by where the model is."""
    assert fitting_executor([layer(300, 1000)], NEURON, 2000, device="cuda:0").workers == 1
    there = Layer("0", "Linear", (300, 1000), "relu", torch.ones(300, 1000, device="meta"), None)
    assert fitting_executor([there], NEURON, 2000).workers == 1


def test_threads_where_the_layers_are_large(no_loky):
    assert fitting_executor([layer(300, 1000)], NEURON, 1000).workers == 1
    assert fitting_executor([layer(300, 1000)], NEURON, 2000).workers == 4
    small = layer(3, 10, "1")
    assert fitting_executor([layer(300, 1000), small], NEURON, 2200).workers == 4  # the many neurons decide
    convolution = layer(300, 25, shape=(300, 1, 5, 5))
    assert fitting_executor([convolution], NEURON, 100).workers == 4  # each sample has many positions
    few = Recipe(epsilon=0.1, budget="neuron", positions=10)
    assert fitting_executor([convolution], few, 100).workers == 1


@pytest.mark.parametrize(("scheme", "workers"), [("parallel", 3), ("cascade", 1)])
def test_no_more_workers_than_blocks_at_the_same_time(scheme, workers, no_loky):
    """A joint budget of fewer than 512 neurons is one block, and a cascade goes layer by layer."""
    layers = [layer(300, 1000, name) for name in "012"]
    assert fitting_executor(layers, Recipe(epsilon=0.1, scheme=scheme), 2000).workers == workers
    wide = [layer(600, 1000, "3"), *layers]  # in five parts of at most 128
    assert fitting_executor(wide, Recipe(epsilon=0.1, scheme=scheme), 2000).workers == 4


def test_what_was_asked_for_stays():
    own = LocalExecutor(3)
    with running(own, [layer(300, 10)], NEURON, 100, alone=False) as chosen:
        assert chosen is own
    share = Shard(1, 2, executor=own)
    with running(share, [layer(300, 10)], NEURON, 100, alone=False) as chosen:
        assert chosen is share and chosen.workers == 3


@loky
def test_a_share_without_an_executor_gets_one():
    with running(Shard(2, 2, wait=5), [layer(1000, 10)], NEURON, 100, alone=False) as chosen:
        assert isinstance(chosen, Shard) and chosen.workers == 4
        assert (chosen.index, chosen.count, chosen.wait) == (2, 2, 5)


@loky
@pytest.mark.slow
def test_the_answer_is_that_of_one_thread_and_the_processes_are_gone(monkeypatch, same):
    monkeypatch.setattr(automatic, "processors", lambda: 2)
    monkeypatch.setattr(automatic, "_NEURONS", 64)
    made = []
    monkeypatch.setattr(automatic, "Processes", lambda workers: made.append(Processes(workers)) or made[-1])
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(12, 80), nn.ReLU(), nn.Linear(80, 6)), torch.randn(200, 12)
    options = {"epsilon": 0.2, "budget": "neuron", "progress": False}
    assert same(nettrim.trim(model, data, **options), nettrim.trim(model, data, executor=LocalExecutor(1), **options))
    (used,) = made
    assert used._pool is None and Path(used._folder).exists()
    folder = used._folder
    made.clear()
    del used
    assert not Path(folder).exists()
