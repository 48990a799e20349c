"""Of a shrunk network's two forms, the faster is the one that is reported."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nettrim.gain import bench, faster_shrunk, measure_gain, picking
from nettrim.gain.latency import Latency
from nettrim.gain.timing import Timing


def half_read(inputs: int = 12) -> nn.Sequential:
    """Half of the inputs and one unit have no weights left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, 9), nn.ReLU(), nn.Linear(9, 4))
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
        model[2].weight[:, 0] = 0
    return model


def timed(picked: float, whole: float):
    """In place of a clock: each form takes as many seconds."""

    def latency(stages, example, *, batches, thread_count, seconds):
        given = {"dense": whole, "picked": picked}
        times = {stage: {"engine": Timing(np.array([given[stage]]))} for stage in stages}
        return [Latency(batch, thread_count, times) for batch in batches]

    return latency


@pytest.mark.parametrize(("picked", "whole"), [(1.0, 2.0), (2.0, 1.0)], ids=["picking pays", "it costs"])
def test_the_faster_form(monkeypatch: pytest.MonkeyPatch, picked: float, whole: float) -> None:
    model, data = half_read(), torch.randn(8, 12)
    monkeypatch.setattr(picking, "latency", timed(picked, whole))
    found = faster_shrunk(model, data, batches=(8,))
    with torch.no_grad():
        torch.testing.assert_close(found.module(data), model(data))
    shapes = [layer.after for layer in found.summary.layers]
    assert shapes == [(8, 6 if picked < whole else 12), (4, 8)]
    (row,) = bench([model], data, batches=(1,), seconds=0.01, find_break_even=False)
    assert [tuple(layer["after"]) for layer in row["shrink"]["layers"]] == shapes
    said = "picks 6 of 12 inputs: reading all" if picked < whole else "reads all inputs: picking 6 of 12"
    assert any(said in note and "took 2.00 x as long" in note for note in row["notes"])
    gain = measure_gain(model, model, data, seconds=0.01)
    assert gain["weights"]["shrunk"] == 8 * 6 + 4 * 8, "picked or not, the same weights are left"


def test_nothing_to_pick_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picking, "latency", None)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    assert not faster_shrunk(model, torch.randn(6, 5)).summary.changed


def test_onnx_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from nettrim.gain.chain import chain_of  # noqa: PLC0415  # with what needs the extra
    from nettrim.gain.onnx_export import chain_model  # noqa: PLC0415
    from nettrim.models.batches import normalise_batches  # noqa: PLC0415

    model = half_read()
    chain = chain_of(model, normalise_batches(torch.randn(4, 12))[0])
    assert chain is not None
    monkeypatch.setattr(picking, "latency", timed(2.0, 1.0))
    (row,) = bench([chain_model(chain)], batches=(2,), seconds=0.01, find_break_even=False)
    assert row["shrink"]["layers"][0]["after"] == [8, 12]
