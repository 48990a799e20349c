"""What a measurement cannot be made of is refused in a sentence; what it was made on is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nettrim.errors import InputError, ModelError
from nettrim.gain import bench, break_even, faster_shrunk, measure_gain

WEIGHT = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
QUICK: dict[str, Any] = {"batches": (2,), "seconds": 0.01, "find_break_even": False}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def measured(**options: Any) -> Any:
    return measure_gain(net(), net(), torch.zeros(4, 4), seconds=options.pop("seconds", 0.01), **options)


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "no batches": (lambda: bench([net()], torch.zeros(4, 4), batches=()), "`batches`"),
    "a batch of -1": (lambda: bench([net()], torch.zeros(4, 4), batches=(-1,)), "`batches`"),
    "half a batch": (lambda: bench([net()], torch.zeros(4, 4), batches=(1.5,)), "`batches`"),  # type: ignore[arg-type]
    "a batch alone": (lambda: bench([net()], torch.zeros(4, 4), batches=3), "`batches`"),  # type: ignore[arg-type]
    "no threads": (lambda: bench([net()], torch.zeros(4, 4), thread_count=0), "`thread_count`"),
    "a million threads": (lambda: bench([net()], torch.zeros(4, 4), thread_count=10**6), "`thread_count`"),
    "no seconds": (lambda: bench([net()], torch.zeros(4, 4), seconds=float("nan")), "`seconds`"),
    "a number for a model": (lambda: bench([3]), "`model`"),
    "a model alone": (lambda: bench(net(), torch.zeros(4, 4)), "`models`"),  # type: ignore[arg-type]
    "a name alone": (lambda: bench("net.onnx"), "`models`"),
    "a gain at batch 0": (lambda: measured(batch=0), "`batch`"),
    "a gain at batch True": (lambda: measured(batch=True), "`batch`"),
    "a gain on no threads": (lambda: measured(thread_count=0), "`thread_count`"),
    "a gain in no time": (lambda: measured(seconds="long"), "`seconds`"),
    "a word for accuracy": (lambda: measured(accuracy="x"), "`accuracy`"),
    "accuracy of unknown stages": (lambda: measured(accuracy={"before": 0.9}), "`accuracy`"),
    "words for accuracies": (lambda: measured(accuracy={"dense": "good"}), "`accuracy`"),
    "picking at batch 0": (lambda: faster_shrunk(net(), torch.zeros(4, 4), batches=(0,)), "`batches`"),
    "picking on no threads": (lambda: faster_shrunk(net(), torch.zeros(4, 4), thread_count=-1), "`thread_count`"),
    "break-even of nothing": (lambda: break_even((0, 5), 1), "`shape`"),
    "break-even at batch 0": (lambda: break_even((5, 5), 0), "`batch`"),
}


@pytest.mark.parametrize(("call", "said"), CALLS.values(), ids=CALLS)
def test_settings_that_are_none(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=rf"^{said} should be .* Got .*\."):
        call()


def test_accuracies_that_are_numbers() -> None:
    found = measured(accuracy={"dense": 1, "trimmed": 0.5})
    assert found["accuracy"] == {"dense": 1.0, "trimmed": 0.5}


def model(nodes: list[tuple[str, str, str]], **inputs: Any) -> Any:
    """An ONNX file of operators, their inputs and their output; inputs by name, as a shape and perhaps a type."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.INT64 if name == "ids" else onnx.TensorProto.FLOAT, shape)
        for name, shape in inputs.items()
    ]
    made = [helper.make_node(kind, read.split(), [result]) for kind, read, result in nodes]
    result = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    graph = helper.make_graph(made, "net", ends, result, [onnx.numpy_helper.from_array(WEIGHT, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def one(*shape: Any) -> Any:
    return model([("MatMul", "x w", "y")], x=list(shape))


def two(first: Any = "n") -> Any:
    return model([("MatMul", "a w", "z"), ("Add", "z b", "y")], a=[first, 6], b=["n", 3])


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


BAD: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "another width": (lambda: one("n", 6), ones(8, 5), r"`x` should be of shape \(n, 6\). Got \(8, 5\)"),
    "one sample": (lambda: one("n", 6), ones(6), r"`x` should be of shape"),
    "one array of two": (two, ones(8, 6), r"`example` should be one array for each input .*\(a, b\). Got 1. Give"),
    "three arrays": (two, (ones(8, 6), ones(8, 3), ones(8, 3), ones(8)), "`data` should be"),
    "fractions for numbers": (lambda: model([("Gather", "w ids", "y")], ids=["n", 4]), ones(8, 4), "whole numbers"),
    "a word": (lambda: one("n", 6), "samples", "`data` should be"),
}


@pytest.mark.parametrize(("make", "example", "said"), BAD.values(), ids=BAD)
def test_samples_that_an_onnx_file_does_not_take(make: Callable[[], Any], example: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        bench([make()], example, **QUICK)


def test_a_file_without_inputs() -> None:
    with pytest.raises(ModelError, match="with an input"):
        bench([model([("Add", "w w", "y")])], **QUICK)


def scaled() -> Any:
    return model([("MatMul", "x w", "z"), ("Mul", "z s", "y")], s=[], x=["n", 6])


GOOD: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "by name, in another order": (two, {"b": ones(8, 3), "a": ones(8, 6)}, "samples given: a (batch, 6), b (batch, 3)"),
    "by place": (two, (ones(8, 6), ones(8, 3)), "a (batch, 6), b (batch, 3)"),
    "with labels": (lambda: one("n", 6), (ones(8, 6), np.zeros(8)), "x (batch, 6)"),
    "unfolded": (lambda: one("n", 6), ones(8, 2, 3), "x (batch, 6)"),
    "a number": (scaled, {"s": np.float32(2), "x": ones(8, 6)}, "s (one number), x (batch, 6)"),
    "a random number": (scaled, None, "s (one number), x (batch, 6)"),
    "a free axis": (
        lambda: one("n", "t", 6),
        None,
        "x (batch, 2, 6); the file leaves axes free, which are 2 here: give",
    ),
    "a real axis": (lambda: one("n", "t", 6), ones(8, 7, 6), "samples given: x (batch, 7, 6)"),
    "nothing free": (lambda: one("n", 6), None, "random inputs: x (batch, 6)"),
}


@pytest.mark.parametrize(("make", "example", "said"), GOOD.values(), ids=GOOD)
def test_what_it_was_measured_on_is_said(make: Callable[[], Any], example: Any, said: str) -> None:
    (row,) = bench([make()], example, **QUICK)
    assert any(said in note for note in row["notes"]), row["notes"]
    assert ("give samples" in " ".join(row["notes"])) == ("free" in said)


@pytest.mark.parametrize("samples", [None, 2, 4, 9])
def test_a_file_made_for_one_batch_size(samples: int | None) -> None:
    (row,) = bench([one(4, 6)], None if samples is None else ones(samples, 6), **QUICK)
    assert [entry["batch"] for entry in row["latency"]] == [4]
    assert any("batch 4 alone" in note for note in row["notes"])
    (row,) = bench([two(4)], **QUICK)
    assert [entry["batch"] for entry in row["latency"]] == [4], "the other input follows"
    (row,) = bench([one("n", 6)], **QUICK)
    assert not any("alone" in note for note in row["notes"])
