"""The main job on real data: train a network on scikit-learn's scanned digits, trim it in both schemes, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from nettrim.api import Trimmed, trim
from nettrim.errors import InputError, MissingExtraError, should
from nettrim.gain import faster_shrunk, measure_gain
from nettrim.models.shrink import Summary
from nettrim.report import Report, Section, render_page
from nettrim.results import Event
from nettrim.threads import torch_threads

SCHEMES = ("parallel", "cascade")
PAGE, CALIBRATION, TEST, DENSE = "demo.html", "calibration.npz", "test.npz", "dense.safetensors"
SIZES = (64, 128, 64, 10)
BATCH = 256  # whose latency is measured
_CALIBRATION = 1297  # of the 1,797 scans; the other 500 are for testing only

EXPLAINED = {
    "parallel": "Every layer is trimmed by itself, against what it saw and answered in the original network. The "
    "layers' discrepancies add up on their way to the output.",
    "cascade": "Layer after layer is trimmed, each on what the layers trimmed before it pass on, but towards the "
    "answers of the original network: later layers make up for earlier ones.",
}


@dataclass(frozen=True)
class Settings:
    """What the demo does; the defaults take under a minute on two cores."""

    epochs: int = 30
    epsilons: tuple[float, ...] = (0.05, 0.1, 0.2)  # of the trade-off curve
    shown: float = 0.05  # the one that is shown in full and saved
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """How far the demo is."""

    text: str
    done: int
    total: int


@dataclass(frozen=True, eq=False)
class Digits:
    """Scans of 8 x 8 pixels in [0, 1] as rows of 64, and which digit each shows."""

    inputs: Tensor  # (1297, 64)
    labels: Tensor  # (1297,)
    test_inputs: Tensor  # (500, 64)
    test_labels: Tensor  # (500,)


@dataclass(frozen=True, eq=False)
class Demo:
    """Everything the demo shows."""

    settings: Settings
    digits: Digits
    dense: nn.Module
    accuracy: float  # of the dense network on the test scans
    training_seconds: float
    trims: Mapping[str, Trimmed]  # by scheme; their reports hold the gain and the trade-off curve
    shrunk: Mapping[str, Summary]  # by scheme: what exact shrinking cut out
    seconds: float


def network() -> nn.Module:
    """The network of the demo, 64-128-64-10 with ReLU, untrained: `nettrim.demo:network` on the command line."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(SIZES):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def load_digits(seed: int = 0) -> Digits:
    """scikit-learn's 1,797 scanned digits, shuffled and split. Raises MissingExtraError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits as load  # noqa: PLC0415  # an extra
    except ModuleNotFoundError as error:
        package = (error.name or "sklearn").partition(".")[0]  # or one that it needs itself
        raise MissingExtraError("scikit-learn" if package == "sklearn" else package, "demo") from error
    pixels, digits = load(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(pixels))
    inputs = torch.from_numpy(pixels[order] / 16).float()
    labels = torch.from_numpy(digits[order]).long()
    return Digits(inputs[:_CALIBRATION], labels[:_CALIBRATION], inputs[_CALIBRATION:], labels[_CALIBRATION:])


def train(digits: Digits, epochs: int, seed: int = 0) -> nn.Module:
    """The network, trained with Adam; the same seed gives the same weights, and the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-4)
        for _ in range(epochs):
            for rows in torch.randperm(len(digits.inputs)).split(64):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(digits.inputs[rows]), digits.labels[rows])
                loss.backward()
                optimizer.step()
    return model.eval()


def run(settings: Settings, notify: Callable[[Step], None] = lambda step: None) -> Demo:
    """Train, trim at every epsilon in both schemes, and measure."""
    started = time.perf_counter()
    digits = load_digits(settings.seed)
    jobs = [(scheme, epsilon) for scheme in SCHEMES for epsilon in _epsilons(settings)]
    layers = len(SIZES) - 1
    total = 1 + layers * len(jobs)
    with torch_threads(1):  # small layers: threads of one product would only wait for each other
        notify(Step("training a network on scanned digits", 0, total))
        dense = train(digits, settings.epochs, settings.seed)
        trained = time.perf_counter() - started
        trims: dict[tuple[str, float], Trimmed] = {}
        for place, job in enumerate(jobs):
            done = 1 + layers * place
            trims[job] = _trim(dense, digits, job, settings, done, total, notify)
        notify(Step("measuring", total, total))
        accuracies = {job: accuracy(trimmed.model, digits) for job, trimmed in trims.items()}
        start = {"epsilon": 0.0, "sparsity": 0.0, "discrepancy": 0.0, "accuracy": accuracy(dense, digits)}
        curve = (
            *({"scheme": scheme, **start} for scheme in SCHEMES),
            *(_point(job, trimmed.report, accuracies[job]) for job, trimmed in trims.items()),
        )
        shown, shrunk = {}, {}
        for scheme in SCHEMES:
            trimmed = trims[scheme, settings.shown]
            few = digits.inputs[:BATCH]
            smaller = faster_shrunk(trimmed.model, few, batches=(BATCH,))
            gain = measure_gain(
                dense,
                trimmed.model,
                digits.test_inputs[:BATCH],
                accuracy=lambda model: accuracy(model, digits),
                batch=BATCH,
                seconds=1.0,
                thread_count=1,
                shrunk=smaller.module,
            )
            report = replace(trimmed.report, tradeoff=curve, gain=gain)
            shown[scheme], shrunk[scheme] = replace(trimmed, report=report), smaller.summary
    seconds = time.perf_counter() - started
    return Demo(settings, digits, dense, accuracy(dense, digits), trained, shown, shrunk, seconds)


def write(demo: Demo, directory: Path) -> Path:
    """Write the page, both trims, the dense network and the data; returns the page. InputError when it cannot."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return _write(demo, directory)
    except OSError as error:
        got = f"{str(directory)!r} ({error.strerror or error})"
        raise InputError(should("--output", "a directory that can be written", got)) from error


def _write(demo: Demo, directory: Path) -> Path:
    for scheme, trimmed in demo.trims.items():
        trimmed.save(directory / scheme)
    digits = demo.digits
    dense = save({name: tensor.contiguous() for name, tensor in demo.dense.state_dict().items()})
    (directory / DENSE).write_bytes(dense)  # not save_file, whose files only their owner can read
    np.savez_compressed(directory / CALIBRATION, inputs=digits.inputs.numpy(), labels=digits.labels.numpy())
    np.savez_compressed(directory / TEST, inputs=digits.test_inputs.numpy(), labels=digits.test_labels.numpy())
    sections = [Section(scheme.capitalize(), demo.trims[scheme].report, EXPLAINED[scheme]) for scheme in demo.trims]
    return render_page("A digit reader, trimmed two ways", sections, directory / PAGE)


def accuracy(model: nn.Module, digits: Digits) -> float:
    """The fraction of the test scans that are read right."""
    with torch.inference_mode():
        return float((model(digits.test_inputs).argmax(1) == digits.test_labels).double().mean())


def _trim(
    dense: nn.Module,
    digits: Digits,
    job: tuple[str, float],
    settings: Settings,
    done: int,
    total: int,
    notify: Callable[[Step], None],
) -> Trimmed:
    scheme, epsilon = job
    text = f"trimming, {scheme} scheme, epsilon {epsilon:g}"

    def listen(event: Event) -> None:
        notify(Step(text, done + event.finished, total))

    return trim(
        dense,
        digits.inputs,
        epsilon=epsilon,
        scheme=scheme,
        holdout=digits.test_inputs,
        seed=settings.seed,
        tolerance=1e-4 if epsilon == settings.shown else 1e-3,  # a point of the curve is not shown to four digits
        progress=listen,
    )


def _epsilons(settings: Settings) -> list[float]:
    return sorted({*settings.epsilons, settings.shown})


def _point(job: tuple[str, float], report: Report, correct: float) -> dict[str, Any]:
    return {
        "scheme": job[0],
        "epsilon": job[1],
        "sparsity": report.sparsity,
        "discrepancy": report.network.discrepancy,
        "accuracy": correct,
    }
