"""A network to be measured: its tensors, the engines that can run it, and its shrunk form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from nettrim.errors import MissingExtraError, ModelError
from nettrim.gain.chain import Chain, SparseChain, chain_of
from nettrim.models.batches import Batch
from nettrim.models.running import deep_copy
from nettrim.models.shrink import Summary, shrink
from nettrim.models.state import state_of

Run = Callable[[], Any]
Engine = Callable[[Batch], Run]  # prepares a run on one batch
CSR = "CSR"


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured of one network; `notes` say which engines are missing and why."""

    tensors: Mapping[str, Tensor]
    dense: Mapping[str, Engine]  # engines with dense kernels
    sparse: Mapping[str, Engine]  # engines that skip zeros
    smaller: Callable[[bool], tuple[Subject, Summary]]  # of whether it picks the inputs that are read
    notes: tuple[str, ...] = ()
    matrices: tuple[tuple[int, int], ...] = field(default=())  # shapes of the plain chain's weights, if it is one
    again: Callable[[], Mapping[str, Engine]] = dict  # the dense engines anew: sessions and weights of their own


def torch_subject(module: nn.Module, example: Batch, *, threads: int, export: bool) -> Subject:
    """A PyTorch module. With `export` a network that is not a plain chain is exported for ONNX Runtime."""
    module = deep_copy(module).cpu().eval()
    example = example.to("cpu", next((p.dtype for p in module.parameters() if p.is_floating_point()), None))
    chain = chain_of(module, example)
    notes: list[str] = []
    engine = _onnx_engine(module, example, chain, threads, export, notes)

    def engines(module: nn.Module) -> dict[str, Engine]:
        found: dict[str, Engine] = {"PyTorch": lambda batch: _torch_run(module, batch)}
        if any(isinstance(part, nn.Conv2d) for part in module.modules()):
            last = deep_copy(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            found["PyTorch channels last"] = lambda batch: _torch_run(last, _channels_last(batch))
        return found if engine is None else {**found, "ONNX Runtime": engine()}

    def smaller(pick_inputs: bool) -> tuple[Subject, Summary]:
        found = shrink(module, example, pick_inputs=pick_inputs)
        return torch_subject(found.module, example, threads=threads, export=export), found.summary

    matrices = tuple((len(step.weight), step.weight.shape[1]) for step in chain or ())
    dense, sparse = engines(module), sparse_engines(chain)
    return Subject(state_of(module), dense, sparse, smaller, tuple(notes), matrices, lambda: engines(deep_copy(module)))


def sparse_engines(chain: Chain | None) -> dict[str, Engine]:
    """The CSR kernel, for plain chains of Linear layers that have at least one sparse one."""
    if chain is None or not any(bool((step.weight == 0).any()) for step in chain):
        return {}
    runner = SparseChain(chain)

    def prepare(batch: Batch) -> Run:
        inputs = batch.args[0] if batch.args else next(iter(batch.kwargs.values()))
        return lambda: runner(inputs)

    return {CSR: prepare}


def onnx_parts() -> ModuleType | None:
    """The module that needs the `onnx` extra; None where that is not installed."""
    try:
        from nettrim.gain import onnx_export  # noqa: PLC0415  # an extra
    except MissingExtraError:
        return None
    return onnx_export


def _onnx_engine(
    module: nn.Module, example: Batch, chain: Chain | None, threads: int, export: bool, notes: list[str]
) -> Callable[[], Engine] | None:
    """What opens a session for an engine; None, with a note, where there is none."""
    parts = onnx_parts()
    if parts is None:
        notes.append("ONNX Runtime is not installed, so dense PyTorch is the best dense engine here")
        return None
    if chain is None and not export:
        notes.append("ONNX Runtime was not measured: the network is not a plain chain")
        return None
    try:
        model = parts.chain_model(chain) if chain is not None else parts.export_onnx(module, example)
        ready = [parts.onnx_runner(model, threads)]
    except (ModelError, MissingExtraError) as error:
        notes.append(f"ONNX Runtime was not measured: {error}")
        return None

    def opened() -> Engine:
        runner = ready.pop() if ready else parts.onnx_runner(model, threads)

        def prepare(batch: Batch) -> Run:
            feeds = parts.feeds_of(model, batch)
            return lambda: runner(feeds)

        return prepare

    return opened


def _torch_run(module: nn.Module, batch: Batch) -> Run:
    def run() -> Any:
        with torch.inference_mode():
            return module(*batch.args, **batch.kwargs)

    return run


def _channels_last(batch: Batch) -> Batch:
    def turned(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dim() == 4:
            return leaf.contiguous(memory_format=torch.channels_last)
        return leaf

    args = tuple(turned(leaf) for leaf in batch.args)
    return Batch(args, {name: turned(leaf) for name, leaf in batch.kwargs.items()}, batch.labels, batch.size)
