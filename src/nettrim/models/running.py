"""Running a module without leaving a mark: evaluation mode, a seeded random state, and plain words on failure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nettrim.errors import DataError, ModelError, should
from nettrim.models.batches import Batch
from nettrim.models.trace import Trace, record

_STACK = "Single samples become a batch by torch.stack."
_STRIDE = 0x9E3779B97F4A7C15  # between the seeds of two batches
_ALIKE = 1e-4  # relative difference of two answers that are the same but for rounding
_EXAMPLE_ROWS = 2  # of the batch on which the structure is found: enough to tell rows from features


def deep_copy(model: nn.Module) -> nn.Module:
    """A deep copy, also of modules that hold computed tensors (old weight norm, pruning masks)."""
    memo: dict[int, Any] = {}
    for part in model.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        module = copy.deepcopy(getattr(model, "_orig_mod", model), memo)
    except Exception as error:
        cure = "What cannot be copied (an open file, a lock, a generator) has to be taken off it first."
        got = f"{type(error).__name__}: {error}"
        raise ModelError(should("model", "one that copy.deepcopy can copy", got, cure)) from error
    for part in list(module.modules()):
        for name, child in part.named_children():
            if hasattr(child, "_orig_mod"):  # of torch.compile: its operations would go unseen
                setattr(part, name, child._orig_mod)
    return module


@contextmanager
def evaluating(module: nn.Module, seed: int) -> Iterator[Callable[[int], None]]:
    """Evaluation mode and a seeded random state; flags, buffers and the random state are put back afterwards.

    Yields a function that seeds anew for the batch with a number, whatever passes came before.
    """
    flags = {part: part.training for part in module.modules()}
    buffers = [(part, *item) for part in module.modules() for item in part._buffers.items()]
    kept = [None if buffer is None else buffer.clone() for _, _, buffer in buffers]
    devices = list({p.device for p in module.parameters() if p.device.type == "cuda"})
    fast = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # observed and unobserved runs take the same kernels
    try:
        with torch.random.fork_rng(devices=devices):

            def begin(number: int) -> None:
                own = (seed + number * _STRIDE) % 2**63
                torch.default_generator.manual_seed(own)
                for device in devices:
                    torch.cuda.default_generators[device.index or 0].manual_seed(own)

            begin(0)
            yield begin
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, flag in flags.items():
            part.training = flag
        with torch.no_grad():
            for (part, name, buffer), before in zip(buffers, kept, strict=True):
                part._buffers[name] = buffer
                if buffer is not None and before is not None:
                    buffer.copy_(before)


def example_trace(module: nn.Module, example: Batch, seed: int) -> tuple[Trace, Batch]:
    """The trace on a few rows of an example, or on all of it where the model insists on its size.

    Raises DataError, saying what came and what the first layer reads, when the model takes neither.
    """
    few = example.rows(0, _EXAMPLE_ROWS)
    with evaluating(module, seed):
        try:
            return record(module, few.args, few.kwargs, keep=True), few
        except Exception:  # its batch size may be fixed
            pass
        try:
            trace = record(module, example.args, example.kwargs, keep=True)
        except Exception as error:
            raise refusal(module, example, error) from error
    if example.size > 1 and _is_flat(example):
        raise DataError(should("data", "batches with one row for each sample", example.shapes(), _STACK))
    return trace, example


def refusal(module: nn.Module, batch: Batch, error: Exception, index: int | None = None) -> DataError:
    """What to raise when a model failed on a batch: what came, what the first layer reads, what the model said."""
    which = "" if index is None else f" in batch {index}"
    expected = _expected(module)
    sentence = should("data", f"batches that the model takes{expected}", batch.shapes() + which)
    cure = ""
    if "type" in str(error) and not any(leaf.dtype.is_floating_point for leaf in batch.tensors()):
        cure = " Convert them first: data.float()."
    elif expected and _is_flat(batch):
        cure = f" {_STACK}"
    return DataError(f"{sentence} The model answered: {_short(error)}.{cure}")


def _is_flat(batch: Batch) -> bool:
    """Whether all inputs are vectors of floating numbers, as single samples are."""
    return all(leaf.dim() == 1 and leaf.is_floating_point() for leaf in batch.tensors())


def is_random(module: nn.Module, example: Batch, seed: int) -> bool:
    """Whether the module answers the same samples differently under another seed."""
    answers = []
    with evaluating(module, seed) as begin, torch.no_grad():
        for number in (0, 1):
            begin(number)
            answers.append(first_output(module(*example.args, **example.kwargs)).detach().to("cpu", torch.float64))
    difference = torch.linalg.vector_norm((answers[1] - answers[0]).nan_to_num())
    return bool(difference > _ALIKE * torch.linalg.vector_norm(answers[0].nan_to_num()))


def first_output(result: Any) -> Tensor:
    """The "logits" of a model's result where there are any, else its first floating tensor."""
    if isinstance(result, Mapping) and isinstance(result.get("logits"), Tensor):
        return result["logits"]
    logits = getattr(result, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not found:
        raise ModelError(should("model", "a network that returns a floating tensor", f"a {type(result).__name__}"))
    return found[0]


def plain(tensor: Tensor) -> Tensor:
    """A copy on the CPU, float64 as it is and everything else as float32."""
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to("cpu", dtype, copy=True)


def _expected(module: nn.Module) -> str:
    """What the first layer of a module reads, for a message."""
    for name, part in module.named_modules():
        who = repr(name) if name else "the layer"
        if isinstance(part, nn.Linear):
            return f" ({who} reads {part.in_features} features in the last dimension)"
        if isinstance(part, nn.modules.conv._ConvNd):
            return f" ({who} reads {part.in_channels} channels and {len(part.kernel_size)} dimensions of space)"
    return ""


def _short(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.removesuffix(".") if len(text) <= 200 else text[:200] + "…"
