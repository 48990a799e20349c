"""`nettrim eval`: how good a model is on data, and how large."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from nettrim.cli import screen
from nettrim.cli.measures import count_weights, predict
from nettrim.cli.opening import open_model
from nettrim.cli.options import AsJson, Data, External, Model, Trust, Weights
from nettrim.data import DataFile, load_data
from nettrim.errors import DataError, near, should
from nettrim.report import format as fmt

METRICS = ("accuracy", "top5", "loss", "mse", "mae")


def command(
    model: Model,
    data: Data,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this: accuracy, top5, loss (cross-entropy), mse or mae (labels as numbers); several times for "
            "more. \\[default: what the labels allow]",
        ),
    ] = None,
    weights: Weights = None,
    trust_model: Trust = False,
    allow_external_data: External = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model: accuracy where the data has labels, else what its outputs look like; and its weights.

    Examples:

      nettrim eval trimmed/model.onnx --data test.npz

      nettrim eval mynets:lenet --weights trimmed --data test.npz --json
    """
    wanted = tuple(metric or ())
    for name in wanted:
        if name not in METRICS:
            raise DataError(should("--metric", "one of " + ", ".join(METRICS), repr(name), near(name, METRICS)))
    samples = load_data(data)
    if wanted and samples.labels is None:
        cure = "Save them beside the inputs: numpy.savez(file, inputs=..., labels=...)."
        raise DataError(should("labels", f"in the data for {wanted[0]}", f"none in '{data}'", cure))
    opened = open_model(model, weights, trust=trust_model, external=allow_external_data)
    outputs = predict(opened, samples.inputs)
    if not bool(torch.isfinite(outputs).all()):
        raise DataError(should("outputs", "finite on this data", "NaN or infinity", "Check the scale of the inputs."))
    found = measure(outputs, samples, wanted)
    stored, nonzero = count_weights(opened)
    result: dict[str, Any] = {
        "model": model,
        "samples": samples.samples,
        **found,
        "weights": stored,
        "nonzeros": nonzero,
        "sparsity": 1 - nonzero / stored if stored else 0.0,
    }
    if as_json:
        screen.show_json(result)
        return
    rows = [(name.replace("_", " "), _written(name, value)) for name, value in result.items() if name != "model"]
    screen.show_table(("measure", model), rows, (False, True))
    if samples.labels is None:
        screen.say("The data has no labels, so there is no accuracy: these are the outputs' own statistics.", "dim")


def measure(outputs: Tensor, samples: DataFile, wanted: tuple[str, ...] = ()) -> dict[str, float | str]:
    """The wanted metrics, or all that the labels allow. Raises DataError when a metric and the labels disagree."""
    labels = samples.labels
    if labels is None:
        scores = outputs.double()
        return {
            "outputs": " x ".join(map(str, outputs.shape)),
            "mean": float(scores.mean()),
            "standard_deviation": float(scores.std(correction=0)),
            "smallest": float(scores.min()),
            "largest": float(scores.max()),
        }
    classes = _is_classes(outputs, labels)
    names = wanted or (("accuracy",) if classes else ("mse", "mae"))
    return {name: _metric(name, outputs.double(), labels, classes) for name in names}


def _is_classes(outputs: Tensor, labels: Tensor) -> bool:
    """Whether the labels are numbers of classes: whole, one a sample, and the outputs a score for each class."""
    whole = not labels.is_floating_point() or bool((labels == labels.round()).all())
    flat = labels.dim() == 1 or labels.shape[1:].numel() == 1
    return whole and flat and outputs.dim() == 2 and outputs.shape[1] > 1


def _metric(name: str, outputs: Tensor, labels: Tensor, classes: bool) -> float:
    if name in ("mse", "mae"):
        target = labels.double()
        if target.numel() != outputs.numel():
            got = f"labels {tuple(labels.shape)} and outputs {tuple(outputs.shape)}"
            raise DataError(should("labels", f"of the outputs' shape for {name}", got))
        error = outputs - target.reshape(outputs.shape)
        return float(error.square().mean() if name == "mse" else error.abs().mean())
    if not classes:
        got = f"labels {tuple(labels.shape)} and outputs {tuple(outputs.shape)}"
        raise DataError(should("labels", f"one class number a sample, and outputs (samples, classes), for {name}", got))
    number = labels.reshape(-1).long()
    if int(number.min()) < 0 or int(number.max()) >= outputs.shape[1]:
        got = f"{int(number.min())} to {int(number.max())}"
        raise DataError(should("labels", f"classes from 0 to {outputs.shape[1] - 1}", got))
    if name == "loss":
        return float(torch.nn.functional.cross_entropy(outputs, number))
    best = outputs.topk(min(5 if name == "top5" else 1, outputs.shape[1]), dim=1).indices
    return float((best == number[:, None]).any(dim=1).double().mean())


def _written(name: str, value: Any) -> str:
    if name in ("accuracy", "top5"):
        return f"{100 * value:.2f} %"
    if name == "sparsity":
        return fmt.percent(value)
    if isinstance(value, int):
        return fmt.count(value)
    return value if isinstance(value, str) else fmt.number(value)
