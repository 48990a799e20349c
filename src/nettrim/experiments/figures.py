"""The figures of the papers that the report has none of: curves, contours, topologies, weights as images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nettrim.report.canvas import PALETTE, SERIES, draw

_CLASSES = (PALETTE["measured"], PALETTE["limit"])


def curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    across: str,
    up: str,
    *,
    columns: int = 3,
    log: bool = False,
    dashed: Sequence[str] = (),
) -> str:
    """Panels of named lines (x, y); lines named in `dashed` are grey and dashed."""
    count = len(panels)
    columns = min(columns, count)
    rows = -(-count // columns)

    def paint(figure: Any) -> None:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        names: dict[str, Any] = {}
        for axis, (title, lines) in zip(axes, panels.items(), strict=False):
            for order, (name, (x, y)) in enumerate(lines.items()):
                if name in dashed:
                    style: dict[str, Any] = {"color": PALETTE["dense"], "linestyle": (0, (4, 3)), "linewidth": 1.1}
                else:
                    style = {
                        "color": PALETTE[SERIES[order % len(SERIES)]],
                        "marker": "o",
                        "markersize": 3,
                        "linewidth": 1.4,
                    }
                (names[name],) = axis.plot(x, y, **style)
            axis.set_title(title)
            axis.set_xlabel(across)
            axis.set_ylabel(up)
            if log:
                axis.set_xscale("log")
                axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.minorticks_off()
            axis.grid()
        for axis in axes[count:]:
            axis.set_visible(False)
        figure.legend(names.values(), names.keys(), loc="outside upper left", ncols=4, borderaxespad=0.0)

    return draw(3.4 * columns, 2.7 * rows + 0.3, f"{up} against {across}", paint)


def contours(grids: Mapping[str, ArrayLike], points: ArrayLike, labels: ArrayLike, extent: float) -> str:
    """The classifier's regions (probability of class 1 on a square grid of [-extent, extent]^2) with the points."""
    points, labels = np.asarray(points), np.asarray(labels)

    def paint(figure: Any) -> None:
        axes = figure.subplots(1, len(grids), squeeze=False)[0]
        for axis, (title, grid) in zip(axes, grids.items(), strict=True):
            grid = np.asarray(grid)
            ticks = np.linspace(-extent, extent, grid.shape[0])
            axis.contourf(ticks, ticks, grid, levels=[0.5, 2.0], colors=[PALETTE["track"]])
            axis.contour(ticks, ticks, grid, levels=[0.5], colors=[PALETTE["ink"]], linewidths=0.8)
            for number in (0, 1):
                chosen = points[labels == number]
                axis.plot(chosen[:, 0], chosen[:, 1], "o", markersize=2.4, color=_CLASSES[number], linestyle="none")
            axis.set_title(title)
            axis.set_aspect("equal")

    return draw(3.3 * len(grids), 3.5, "classifiers of the nested spirals", paint)


def topology(pairs: Mapping[str, ArrayLike], first: int, last: int) -> str:
    """Links between neurons `first` to `last` (from 1) of two layers, one panel a weight (out, in) (A fig. 1b)."""

    def paint(figure: Any) -> None:
        axes = figure.subplots(1, len(pairs), squeeze=False)[0]
        for axis, (title, matrix) in zip(axes, pairs.items(), strict=True):
            part = np.asarray(matrix)[first - 1 : last, first - 1 : last]
            scale = float(np.abs(part).max()) or 1.0
            for out, before in np.argwhere(part):
                weight = float(abs(part[out, before])) / scale
                axis.plot([0, 1], [before, out], color=PALETTE["measured"], alpha=0.15 + 0.85 * weight, linewidth=0.7)
            for side in (0, 1):
                axis.plot(
                    [side] * len(part), range(len(part)), "o", color=PALETTE["ink"], markersize=3, linestyle="none"
                )
            axis.set_title(f"{title}: {int(np.count_nonzero(part))} links")
            axis.set_ylim(len(part) - 0.5, -0.5)
            axis.axis("off")

    return draw(1.9 * len(pairs), 3.2, f"links between neurons {first} to {last}", paint)


def stems(pairs: Mapping[str, ArrayLike]) -> str:
    """Weights one by one as stems, a row of panels a matrix (out, in) (A fig. 3d)."""

    def paint(figure: Any) -> None:
        axes = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
        for axis, (title, matrix) in zip(axes, pairs.items(), strict=True):
            for order, row in enumerate(np.asarray(matrix)):
                places = np.flatnonzero(row)
                axis.vlines(places, 0, row[places], color=_CLASSES[order % 2], linewidth=0.9, alpha=0.8)
            axis.axhline(0, color=PALETTE["dense"], linewidth=0.6)
            axis.set_title(f"{title}: {int(np.count_nonzero(matrix))} weights")
            axis.set_xlabel("input")

    return draw(3.6 * len(pairs), 2.4, "weights of the last layer", paint)


def bands(pairs: Mapping[str, ArrayLike]) -> str:
    """Which weights are not zero, one panel a matrix (out, in); inputs run across (N fig. 3)."""

    def paint(figure: Any) -> None:
        axes = figure.subplots(len(pairs), 1, squeeze=False)[:, 0]
        for axis, (title, matrix) in zip(axes, pairs.items(), strict=True):
            used = np.asarray(matrix) != 0
            axis.imshow(used, cmap="Greys", aspect="auto", vmin=0, vmax=1)
            axis.set_title(f"{title}: {int(used.sum()):,} weights, {int((~used.any(axis=0)).sum())} empty columns")
            axis.set_ylabel("neuron")
        axes[-1].set_xlabel("input pixel")

    return draw(7.2, 2.3 * len(pairs), "nonzero weights of the first layer", paint)


def digits(images: ArrayLike, titles: Sequence[str], columns: int = 8) -> str:
    """Images (count, side, side) with a line of text above each (A fig. 7)."""
    images = np.asarray(images)
    rows = max(1, -(-len(images) // columns))

    def paint(figure: Any) -> None:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.axis("off")
        for axis, image, title in zip(axes, images, titles, strict=False):
            axis.imshow(image, cmap="Greys", vmin=0, vmax=1)
            axis.set_title(title, fontsize=7)

    return draw(0.95 * columns, 1.25 * rows, "digits that trimming corrected", paint)


def heat(rates: ArrayLike, across: Sequence[float], up: Sequence[float], lines: Mapping[str, Sequence[float]]) -> str:
    """Rates (up, across) as shades, with named lines y(x) over them (phase transition)."""

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        shades = axis.pcolormesh(across, up, np.asarray(rates), cmap="Blues", vmin=0, vmax=1, shading="nearest")
        for order, (name, values) in enumerate(lines.items()):
            axis.plot(
                across, values, color=(PALETTE["limit"], PALETTE["series-2"])[order % 2], linewidth=1.6, label=name
            )
        axis.set_yscale("log")
        axis.set_ylim(up[0], up[-1])
        axis.set_yticks(up, [f"{value:g}" for value in up])
        axis.minorticks_off()
        axis.set_xlabel("s, weights of the neuron")
        axis.set_ylabel("P, samples")
        figure.legend(loc="outside upper left", ncols=2, borderaxespad=0.0)
        figure.colorbar(shades, ax=axis, label="share recovered exactly")

    return draw(5.4, 3.6, "share of sparse neurons recovered exactly", paint)
