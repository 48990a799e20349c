"""An ONNX model as a network to be measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nettrim.errors import ModelError, should
from nettrim.gain.chain import Chain, SparseChain, Step
from nettrim.gain.onnx_export import feeds_of, fixed_batch, onnx_runner
from nettrim.gain.subject import Engine, Run, Subject, sparse_engines
from nettrim.models.batches import Batch, normalise_batches
from nettrim.models.onnx_file import read_model
from nettrim.models.onnx_graph import Graph, stored_floats
from nettrim.models.onnx_network import OnnxNetwork
from nettrim.models.onnx_shrink import random_feeds, shrink_onnx
from nettrim.models.shrink import Summary

_AGREEMENT = 1e-4
_STEPS = {"linear": "", "relu": "relu", "sigmoid": "sigmoid", "tanh": "tanh"}


def onnx_subject(
    source: str | os.PathLike[str] | Any, example: Any, *, threads: int
) -> tuple[Subject, Batch, int | None]:
    """A model, the batch it is measured on (random where none is given), and the batch size it insists on.

    example: one batch, or several arrays in the order of the model's inputs or by their names. Raises DataError for
    one that the model does not take.
    """
    model = read_model(source)
    if not Graph(model, ranks={}).inputs:
        raise ModelError(should("model", "one with an input to run it on", "none"))
    fixed = fixed_batch(model)
    batch = _random_batch(model) if example is None else _as_batch(model, example)
    if fixed is not None:
        batch = batch.pick(torch.arange(fixed) % batch.size)
    feeds = feeds_of(model, batch)
    notes = (_note(model, feeds, random=example is None),)
    runner = onnx_runner(model, threads)
    chain = _chain(model, batch, runner)

    def engines(runner: Callable[..., Any], chain: Chain | None) -> dict[str, Engine]:
        def prepare(batch: Batch) -> Run:
            feeds = feeds_of(model, batch)
            return lambda: runner(feeds)

        if chain is None:
            return {"ONNX Runtime": prepare}
        whole = SparseChain(chain, sparse_from=2.0)  # every product dense

        def torch_run(batch: Batch) -> Run:
            inputs = _only(batch)
            return lambda: whole(inputs)

        return {"ONNX Runtime": prepare, "PyTorch": torch_run}

    def again() -> dict[str, Engine]:
        copied = None if chain is None else tuple(replace(step, weight=step.weight.clone()) for step in chain)
        return engines(onnx_runner(model, threads), copied)

    def smaller(pick_inputs: bool) -> tuple[Subject, Summary]:
        found = shrink_onnx(model, feeds_of(model, batch), pick_inputs=pick_inputs)
        return onnx_subject(found.model, batch, threads=threads)[0], found.summary

    tensors = {name: _tensor(array) for name, array in stored_floats(model).items()}
    matrices = tuple((len(step.weight), step.weight.shape[1]) for step in chain or ())
    dense = engines(runner, chain)
    return Subject(tensors, dense, sparse_engines(chain), smaller, notes, matrices, again), batch, fixed


def _chain(model: Any, batch: Batch, runner: Any) -> Chain | None:
    """The model as a plain chain of matrices, if it is one and that computes what the model does."""
    try:
        network = OnnxNetwork(model)
    except ModelError:
        return None
    layers = {layer.name: layer for layer in network.layers}
    if network.chain is None or len(network.input_names) != 1:
        return None
    steps = []
    for name in network.chain:
        layer = layers[name]
        if (
            layer.activation not in _STEPS
            or layer.weight.dtype != torch.float32
            or layer.kind not in ("Gemm", "MatMul")
        ):
            return None
        bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
        steps.append(Step(layer.weight, bias, _STEPS[layer.activation]))
    chain = tuple(steps)
    inputs = _only(batch)
    try:
        wanted = torch.from_numpy(np.asarray(runner(feeds_of(model, batch))[0]))
        got = SparseChain(chain, sparse_from=2.0)(inputs.float())
    except (RuntimeError, TypeError, ValueError):
        return None
    same = got.shape == wanted.shape and (got - wanted).abs().max() <= _AGREEMENT * wanted.abs().max().clamp(min=1e-12)
    return chain if bool(same) else None


def _as_batch(model: Any, example: Any) -> Batch:
    inputs = Graph(model, ranks={}).inputs
    if isinstance(example, Mapping):
        example = {name: entry if isinstance(entry, Tensor) else np.asarray(entry) for name, entry in example.items()}
    batch = normalise_batches([example], inputs=len(inputs))[0]
    return replace(batch, size=next((len(tensor) for tensor in batch.tensors() if tensor.dim()), 1))


def _note(model: Any, feeds: Mapping[str, np.ndarray], *, random: bool) -> str:
    """The shapes it is measured on, and where nobody knows whether they are real."""
    shapes = ", ".join(f"{name} {_shown(array.shape)}" for name, array in feeds.items())
    values = [value for value in Graph(model, ranks={}).inputs if value.name in feeds]
    free = any(dim.dim_value <= 0 for value in values for dim in value.type.tensor_type.shape.dim[1:])
    if not random:
        return f"run on the samples given: {shapes}"
    if not free:
        return f"run on random inputs: {shapes}"
    cure = "the file leaves axes free, which are 2 here: give samples of real sizes (--data)"
    return f"run on random inputs: {shapes}; {cure}"


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['batch', *map(str, shape[1:])])})" if shape else "(one number)"


def _random_batch(model: Any) -> Batch:
    feeds = random_feeds(Graph(model), np.random.default_rng(0), None)
    tensors = {name: torch.from_numpy(array) for name, array in feeds.feeds.items()}
    return Batch((), tensors, None, feeds.size)


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.name == "bfloat16":  # which NumPy has no name of its own for
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _only(batch: Batch) -> Tensor:
    return batch.args[0] if batch.args else next(iter(batch.kwargs.values()))
