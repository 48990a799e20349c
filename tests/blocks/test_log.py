"""The log of a checkpoint: whatever moment a run is killed at, no finished unit lacks a line."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import nettrim
from nettrim.blocks import run, split
from nettrim.checkpoint import Checkpoint
from nettrim.executors import LocalExecutor, Shard, Unfinished
from nettrim.log import LOG, Log


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(split, "_ROWS", 4)
    monkeypatch.setattr(split, "_JOINT_ROWS", 4)


def units(folder, budget):
    """How many lines the log has of every unit, after a trim."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 3))
    options = {"epsilon": 0.2, "budget": budget, "progress": False}
    nettrim.trim(model, torch.randn(40, 6), executor=LocalExecutor(1), checkpoint=folder, **options)
    lines = map(json.loads, (folder / LOG).read_text().splitlines())
    return Counter((line["layer"], line["block"], line.get("part"), line.get("round")) for line in lines)


@pytest.mark.parametrize("stored", [True, False], ids=["after the file", "before the file"])
@pytest.mark.parametrize("budget", ["neuron", "layer"])
def test_a_kill_beside_a_save_leaves_no_unit_without_a_line(tmp_path, monkeypatch, budget, stored):
    """The same units as a whole run, one of them perhaps twice."""
    save, saves = Checkpoint.save, []

    def counted(self, unit, *given):
        saves.append(unit)
        save(self, unit, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", counted)
        whole = units(tmp_path / "whole", budget)
    total = len(saves)
    assert total > 5
    for last in range(1, total + 1, 1 + total // 8):

        def killed(self, unit, *given, last=last):
            ended = len(saves) + 1 == last
            if stored or not ended:
                counted(self, unit, *given)
            if ended:
                raise KeyboardInterrupt

        saves.clear()
        folder = tmp_path / str(last)
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", killed)
            with pytest.raises(KeyboardInterrupt):
                units(folder, budget)
        resumed = units(folder, budget)
        assert set(resumed) == set(whole)
        assert resumed.total() <= whole.total() + 1


@pytest.mark.parametrize("signs", [0, 1, 5])
def test_a_share_waits_as_long_as_another_one_writes_to_the_log(tmp_path, monkeypatch, signs):
    """Though none of the blocks that are missing is finished meanwhile; the hours pass in no time."""
    now, sleeps = 0.0, 0

    def sleep(seconds):
        nonlocal now, sleeps
        now, sleeps = now + 0.9 * 3600, sleeps + 1
        if sleeps <= signs:
            Log(tmp_path / LOG).write({"layer": "another", "part": 1})

    clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep, time=lambda: now)
    monkeypatch.setattr(run, "time", clock)
    monkeypatch.setattr("nettrim.log.time", clock)
    model = nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 3))
    options = {"executor": Shard(2, 2, wait=3600, executor=LocalExecutor(1)), "checkpoint": tmp_path}
    with pytest.raises(Unfinished):
        nettrim.trim(model, torch.randn(40, 6), epsilon=0.2, budget="neuron", progress=False, **options)
    assert sleeps == signs + 2
