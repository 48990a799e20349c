"""The benchmark's figure: time a neuron beside the rivals, and time against samples and neurons, log-log."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLORS = {"nettrim": "C0", "SCS": "C1", "Clarabel": "C2", "published ADMM": "C3", "OSQP": "C4", "HiGHS": "C5"}


def draw(cases: list[dict[str, Any]], grown: dict[str, list[dict[str, Any]]], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2))
    _beside(left, [case for case in cases if case.get("rivals") and "certified" in case["ours"]])
    _growth(right, grown)
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "nettrim"
    plt.rcParams["svg.fonttype"] = "none"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _beside(axes: Axes, cases: list[dict[str, Any]]) -> None:
    """A column a case; a rival's arrow upwards says that its time is a lower bound."""
    seen = set()
    for index, case in enumerate(cases):
        points = {"nettrim": (case["ours"]["seconds"] / max(1, case["live"]), False)}
        points |= {name: (rival["seconds"], rival.get("at_least", False)) for name, rival in case["rivals"].items()}
        for name, (seconds, more) in points.items():
            label = None if name in seen else name
            seen.add(name)
            marker = "^" if more else "D" if name == "nettrim" else "o"
            axes.scatter([index], [seconds], color=COLORS[name], marker=marker, label=label)
    axes.set_yscale("log")
    axes.set_xticks(range(len(cases)), [case["name"] for case in cases], rotation=30, ha="right", fontsize=7)
    axes.set_ylabel("CPU seconds a neuron (triangle: at least)")
    axes.grid(axis="y", alpha=0.3)
    if cases:
        axes.legend(fontsize=7)


def _growth(axes: Axes, grown: dict[str, list[dict[str, Any]]]) -> None:
    for kind, points in grown.items():
        sizes = [point["size"] / points[0]["size"] for point in points]
        seconds = [point["seconds"] for point in points]
        name = {"M": "neurons M", "P": "samples P"}[kind]
        (line,) = axes.loglog(
            sizes, seconds, marker="o", label=f"{name}, from {points[0]['size']}: slope {slope(points):.2f}"
        )
        ideal = [seconds[0] * size for size in sizes]
        axes.loglog(sizes, ideal, color=line.get_color(), linestyle=":", alpha=0.6)
    axes.set_xlabel("size, times the smallest (dotted: linear)")
    axes.set_ylabel("CPU seconds of a solve")
    axes.grid(alpha=0.3)
    if grown:
        axes.legend(fontsize=7)


def slope(points: list[dict[str, Any]]) -> float:
    """The least-squares exponent of seconds against size."""
    if len(points) < 2:
        return math.nan
    xs = [math.log(point["size"]) for point in points]
    ys = [math.log(point["seconds"]) for point in points]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)
