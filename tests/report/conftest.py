"""Synthetic results: random weights pruned by magnitude, with figures a real trim could have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nettrim.report import Report
from nettrim.results import LayerResult, NetworkResult, TrimResult


def make_layer(
    name: str = "fc", shape: tuple[int, int] = (30, 40), sparsity: float = 0.9, **changes: Any
) -> LayerResult:
    generator = torch.Generator().manual_seed(len(name) + shape[0])
    before = torch.randn(shape, generator=generator) / shape[1] ** 0.5
    threshold = before.abs().flatten().kthvalue(max(1, int(sparsity * before.numel()))).values
    after = torch.where(before.abs() > threshold, before, 0.0)
    values: dict[str, Any] = {
        "name": name,
        "kind": "Linear",
        "shape": shape,
        "activation": "relu",
        "nonzeros_before": int(before.count_nonzero()),
        "nonzeros_after": int(after.count_nonzero()),
        "epsilon": 0.05,
        "discrepancy": 0.021,
        "discrepancy_select": 0.05,
        "objective": 12.5,
        "bound": 12.4999,
        "gap": 8.1e-6,
        "certified": True,
        "neurons": {"certified": shape[0] - 1, "dead": 1},
        "iterations": 120,
        "seconds": 0.8,
        "weight_before": before,
        "weight_after": after,
    }
    return LayerResult(**{**values, **changes})


def make_skipped(name: str = "conv", reason: str = "its input is shared by two layers") -> LayerResult:
    return LayerResult(name, "Conv2d", (8, 3, 3, 3), "relu", 216, 216, skipped=reason)


def make_report(*layers: LayerResult, network: dict[str, Any] | None = None, **extras: Any) -> Report:
    values: dict[str, Any] = {
        "bound": 0.152,
        "bound_reason": "",
        "discrepancy": 0.0213,
        "discrepancy_holdout": 0.0254,
        "theorem": "Theorem 1",
        "samples": 1200,
        "samples_holdout": 300,
    }
    notes = extras.pop("notes", ())
    scheme = extras.pop("scheme", "parallel")
    result = TrimResult(layers, NetworkResult(**{**values, **(network or {})}), 12.3, scheme, tuple(notes))
    return Report(result, **extras)


@pytest.fixture
def layer() -> Callable[..., LayerResult]:
    return make_layer


@pytest.fixture
def skipped() -> Callable[..., LayerResult]:
    return make_skipped


@pytest.fixture
def report() -> Callable[..., Report]:
    return make_report


@pytest.fixture
def small(report: Callable[..., Report]) -> Report:
    """A report whose page is quick to make: two figures."""
    return report(make_skipped())


@pytest.fixture
def full(report: Callable[..., Report]) -> Report:
    """A report with everything a page can show, and names that attack it."""
    curve = [
        {"epsilon": e, "sparsity": s, "discrepancy": d, "accuracy": a, "scheme": scheme}
        for scheme, shift in (("parallel", 0.0), ("cascade", 0.01))
        for e, s, d, a in (
            (0.01, 0.55, 0.004, 0.976 + shift / 4),
            (0.02, 0.71, 0.011, 0.975 + shift / 4),
            (0.05, 0.88 + shift, 0.026 - shift, 0.971 + shift / 4),
            (0.1, 0.937 + shift, 0.07 - shift, 0.962 + shift / 2),
            (0.2, 0.968 + shift, 0.16 - 2 * shift, 0.921 + 2 * shift),
        )
    ]
    gain = {
        "accuracy": {"dense": 0.9772, "trimmed": 0.9711, "shrunk": 0.9711},
        "weights": {"dense": 119600, "trimmed": 8300, "shrunk": 41200},
        "bytes": {"dense": 480312, "shrunk": 170020},
        "latency": {"dense": 3.1e-4, "shrunk": 2.2e-4},
        "note": "Latency: median of 50 runs on a batch of 64, 2 threads.",
    }
    recipe = {"epsilon": 0.05, "scheme": "parallel", "gamma": 1.1, "refit": True, "targets": None}
    layers = (
        make_layer("features.fc1", (300, 784), 0.963, discrepancy=0.0192),
        make_layer("<script>alert(1)</script>", (100, 300), 0.93, discrepancy=0.031),
        make_layer(
            "$\\frac$ & [red] head.with.a.very.long.dotted.name.out", (10, 100), 0.41, certified=False, gap=2.3e-3
        ),
        make_layer("late", (100, 100), 0.8, discrepancy=0.061, certified=False),
        make_skipped("stem <b>"),
    )
    return make_report(*layers, tradeoff=curve, gain=gain, recipe=recipe, notes=("1 sample was a duplicate <i>",))
