"""Running what MODEL turned out to be, and counting its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nettrim.cli.opening import Opened
from nettrim.errors import DataError, NettrimError, should
from nettrim.models.batches import Batch, normalise_batches
from nettrim.models.running import evaluating, first_output


def predict(opened: Opened, inputs: Any) -> Tensor:
    """The model's outputs (samples, ...), in batches of 256. Raises DataError when it cannot take the inputs."""
    if opened.path is not None:
        from nettrim.cli.onnx_files import predict_onnx, read_onnx  # noqa: PLC0415  # an extra

        return predict_onnx(read_onnx(opened), inputs)
    assert opened.module is not None
    return predict_module(opened.module, normalise_batches(inputs, model=opened.module))


def predict_module(module: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """A module's first floating output on all batches."""
    found = []
    try:
        with evaluating(module, 0), torch.inference_mode():
            for batch in batches:
                found.append(first_output(module(*batch.args, **batch.kwargs)))
    except NettrimError:
        raise
    except Exception as error:
        answer = " ".join(str(error).split())[:200]
        got = f"{batches[0].shapes()} ({answer})"
        raise DataError(should("inputs", "of a shape and type that the model takes", got)) from error
    return torch.cat(found)


def count_weights(opened: Opened) -> tuple[int, int]:
    """Weights of two dimensions or more, biases and tables of normalisation not among them: all, and not zero."""
    if opened.path is not None:
        from nettrim.cli.onnx_files import read_onnx, weights_onnx  # noqa: PLC0415  # an extra

        tensors = weights_onnx(read_onnx(opened))
    else:
        assert opened.module is not None
        tensors = [tensor for tensor in opened.module.parameters() if tensor.dim() > 1]
    return sum(tensor.numel() for tensor in tensors), sum(int(torch.count_nonzero(tensor)) for tensor in tensors)
