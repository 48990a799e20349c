"""The figures, one function each: plain arrays and numbers in, an SVG string out.

They follow one grammar: grey is the original network, blue what was measured on the trimmed one, orange
what was asked or what theory allows. All need the `report` extra (MissingExtraError without it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nettrim.report import format as fmt
from nettrim.report.canvas import PALETTE, SERIES, draw
from nettrim.report.ink import magnitude_scale, weight_image
from nettrim.report.rows import FEASIBILITY

_ROW = 0.27  # inches a row in the charts with one row a layer
_HOLLOW: dict[str, Any] = {"markerfacecolor": PALETTE["surface"], "markeredgewidth": 1.4}


def panel_height(rows: int, columns: int) -> float:
    """Inches that a matrix of this shape is drawn in, labels included."""
    return 0.65 + 3.15 * float(np.clip(rows / columns, 0.45, 1.0))


def adjacency(before: ArrayLike, after: ArrayLike) -> str:
    """The weights (out, in) as matrices, before beside after, one row a neuron (N fig. 1b)."""
    pair = (_matrix(before), _matrix(after))
    scale = magnitude_scale(pair[0])
    rows, columns = pair[0].shape
    titles = [
        f"before: {fmt.count(int(np.count_nonzero(pair[0])))} weights",
        f"after: {fmt.count(int(np.count_nonzero(pair[1])))} weights ({fmt.percent(_kept(pair[1]))} of entries)",
    ]

    def paint(figure: Any) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, weight, title in zip(axes, pair, titles, strict=True):
            axis.imshow(weight_image(weight, scale), extent=(0, columns, rows, 0), aspect="auto")
            axis.set_title(title)
            axis.set_xlabel("input")
            axis.spines[["top", "right"]].set_visible(True)
            axis.locator_params(nbins=5, integer=True)
        axes[0].set_ylabel("neuron")

    return draw(7.0, panel_height(rows, columns), f"weighted adjacency, {titles[0]}, {titles[1]}", paint)


def histogram(before: ArrayLike, after: ArrayLike, bins: int = 61, height: float = 2.4) -> str:
    """The weights' histograms on shared bins, counts on a logarithmic axis (A fig. 5)."""
    pair = (_matrix(before).ravel(), _matrix(after).ravel())
    reach = max((float(np.abs(weight).max()) for weight in pair if weight.size), default=0.0) or 1.0
    edges = np.linspace(-reach, reach, 2 * (bins // 2) + 2)  # an odd number of bins: zero is in the middle of one
    counts = [np.histogram(weight, edges)[0] for weight in pair]

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        axis.stairs(counts[1], edges, fill=True, color=PALETTE["measured"], alpha=0.75, linewidth=0, label="after")
        axis.stairs(counts[0], edges, color=PALETTE["muted"], linewidth=1.0, label="before")
        axis.set_yscale("log")
        axis.set_ylim(0.7, 6 * max(1, *(int(count.max()) for count in counts)))
        axis.set_xlim(-reach, reach)
        axis.set_xlabel("weight")
        axis.set_ylabel("count (log)")
        axis.yaxis.set_major_formatter(lambda value, _: fmt.count(value))
        axis.minorticks_off()
        axis.grid(axis="y")
        axis.legend(loc="upper right", handlelength=1.2, borderaxespad=0.0)

    return draw(3.4, height, "histogram of the weights before and after", paint)


def sparsity_bars(names: Sequence[str], sparsity: Sequence[float], skipped: Sequence[bool] | None = None) -> str:
    """Fraction of zero weights, one bar a layer; skipped layers say so."""
    left_alone = list(skipped) if skipped is not None else [False] * len(names)

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        places = np.arange(len(names))
        axis.barh(places, 1.0, height=0.62, color=PALETTE["track"], linewidth=0)
        axis.barh(places, sparsity, height=0.62, color=PALETTE["measured"], linewidth=0)
        for place, value, skip in zip(places, sparsity, left_alone, strict=True):
            text = fmt.percent(value) + (" (skipped)" if skip else "")
            inside = value > 0.45
            colour = PALETTE["surface"] if inside else PALETTE["ink"]
            shift, side = (-4, "right") if inside else (4, "left")
            axis.annotate(
                text,
                (value, place),
                (shift, 0),
                textcoords="offset points",
                va="center_baseline",
                ha=side,
                color=colour,
            )
        axis.set_xlim(0, 1)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axis.spines["bottom"].set_visible(False)
        axis.tick_params(axis="x", length=0)
        _layer_axis(axis, names)

    return draw(5.2, _height(names), "sparsity by layer", paint)


def tolerance_dots(
    names: Sequence[str],
    epsilon: Sequence[float | None],
    discrepancy: Sequence[float | None],
    select: Sequence[float | None] | None = None,
) -> str:
    """The tolerance asked of each layer (a bar to stay left of) and the discrepancy reached (a dot)."""
    before_refit = list(select) if select is not None else [None] * len(names)
    highest = max((float(value) for value in (*epsilon, *discrepancy) if fmt.known(value)), default=0.0) or 1.0

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        labelled: set[str] = set()

        def once(label: str) -> str:
            return "_nolegend_" if label in labelled or labelled.add(label) else label

        for place, (asked, reached, selected) in enumerate(zip(epsilon, discrepancy, before_refit, strict=True)):
            if not fmt.known(asked) and not fmt.known(reached):
                axis.annotate(
                    "skipped",
                    (0, place),
                    (4, 0),
                    textcoords="offset points",
                    va="center_baseline",
                    color=PALETTE["muted"],
                )
                continue
            breach = fmt.known(asked) and fmt.known(reached) and reached > asked * (1 + FEASIBILITY)
            colour = PALETTE["bad"] if breach else PALETTE["measured"]
            if fmt.known(reached):
                axis.plot([0, reached], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
            if fmt.known(selected) and selected != reached:
                axis.plot(
                    selected,
                    place,
                    "o",
                    color=PALETTE["measured"],
                    markersize=5.5,
                    **_HOLLOW,
                    label=once("before refit"),
                    linestyle="none",
                )
            if fmt.known(reached):
                axis.plot(reached, place, "o", color=colour, markersize=6.5, label=once("reached"), linestyle="none")
            if fmt.known(asked):
                axis.plot(
                    [asked, asked],
                    [place - 0.36, place + 0.36],
                    color=PALETTE["limit"],
                    linewidth=2.4,
                    label=once("epsilon asked"),
                    solid_capstyle="butt",
                )
        axis.set_xlim(0, 1.06 * highest)
        axis.set_xlabel("relative discrepancy")
        axis.grid(axis="x")
        _layer_axis(axis, names)
        if labelled:
            figure.legend(loc="outside upper left", ncols=3, handlelength=1.2, columnspacing=1.4, borderaxespad=0.0)

    return draw(5.2, _height(names) + 0.42, "epsilon asked and discrepancy reached, by layer", paint)


def network_dots(bound: float | None, discrepancy: float | None, holdout: float | None = None) -> str:
    """The theorem's bound on the network's output beside what was measured, on a logarithmic axis."""
    rows = [
        ("theorem's bound", bound, "limit", "D", True),
        ("measured, calibration", discrepancy, "measured", "o", True),
        ("measured, held-out", holdout, "measured", "o", False),
    ]
    shown = [(label, value, colour, marker, solid) for label, value, colour, marker, solid in rows if fmt.known(value)]
    positive = [value for _, value, *_ in shown if value > 0]
    lowest, highest = (min(positive), max(positive)) if positive else (1e-3, 1.0)

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        axis.set_xscale("log")
        axis.set_xlim(lowest / 2, highest * 4)
        axis.locator_params(axis="x", numticks=6, **({} if highest > 30 * lowest else {"subs": (1.0, 2.0, 5.0)}))
        axis.xaxis.set_major_formatter(lambda value, _: fmt.setting(value))
        axis.minorticks_off()
        for place, (_, value, colour, marker, solid) in enumerate(shown):
            at_zero = not value > 0
            at = lowest / 2 if at_zero else value
            style = {} if solid else _HOLLOW
            axis.axhline(place, color=PALETTE["grid"], linewidth=0.6)
            axis.plot(at, place, marker, color=PALETTE[colour], markersize=7, clip_on=False, **style)
            axis.annotate(fmt.number(value), (at, place), (8, 0), textcoords="offset points", va="center_baseline")
        axis.set_xlabel("relative discrepancy of the network's output (log)")
        axis.grid(axis="x")
        _layer_axis(axis, [row[0] for row in shown])

    return draw(5.2, _height(shown), "network bound and measured discrepancy", paint)


def tradeoff_curve(
    points: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]] = (), dense_accuracy: float | None = None
) -> str:
    """Sparsity against discrepancy and, where known, accuracy; one line a scheme.

    points: dictionaries with `sparsity` and `discrepancy` and/or `accuracy` (fractions), optionally `epsilon`
    and `scheme`. here: the trims reported, same keys, ringed. dense_accuracy: a dashed line.
    """
    measures = [name for name in ("discrepancy", "accuracy") if any(fmt.known(point.get(name)) for point in points)]
    schemes = list(dict.fromkeys(str(point.get("scheme") or "") for point in points))
    width = 10.4 if len(measures) == 2 else 5.2

    def paint(figure: Any) -> None:
        axes = figure.subplots(1, max(1, len(measures)), squeeze=False)[0]
        for axis, measure in zip(axes, measures, strict=False):
            for order, scheme in enumerate(schemes):
                colour = PALETTE[SERIES[order % len(SERIES)]]
                _tradeoff_line(axis, _scheme_points(points, scheme, measure), measure, colour, scheme, order)
            for point in here:
                if fmt.known(point.get("sparsity")) and fmt.known(point.get(measure)):
                    axis.plot(
                        point["sparsity"],
                        point[measure],
                        "o",
                        markersize=12,
                        color=PALETTE["limit"],
                        markerfacecolor="none",
                        markeredgewidth=1.4,
                        clip_on=False,
                    )
            if measure == "accuracy" and fmt.known(dense_accuracy):
                axis.axhline(dense_accuracy, color=PALETTE["dense"], linewidth=1.0, linestyle=(0, (4, 3)))
                axis.annotate(
                    "original network",
                    (0.99, dense_accuracy),
                    (0, 3),
                    textcoords="offset points",
                    xycoords=("axes fraction", "data"),
                    color=PALETTE["muted"],
                    va="bottom",
                    ha="right",
                )
                axis.margins(y=0.12)
            axis.margins(x=0.09)
            axis.set_title(measure)
            axis.set_xlabel("sparsity")
            axis.xaxis.set_major_formatter(_percent_tick)
            axis.grid()
            if measure == "accuracy":
                axis.yaxis.set_major_formatter(_percent_tick)
            else:
                axis.set_ylim(bottom=0)
        if any(schemes):
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, borderaxespad=0.0)

    return draw(width, 3.0, "trade-off curve: sparsity against " + " and ".join(measures), paint)


def _tradeoff_line(
    axis: Any, points: list[Mapping[str, Any]], measure: str, colour: str, scheme: str, order: int
) -> None:
    across, up = [point["sparsity"] for point in points], [point[measure] for point in points]
    label = fmt.elide(scheme) if scheme else "_nolegend_"
    axis.plot(across, up, "o-", color=colour, markersize=4, linewidth=1.4, label=label)
    if measure != "discrepancy" or order > 1:
        return  # a third scheme's labels would only cover the others
    shift, side = ((-5, 4), "right") if order == 0 else ((6, -7), "left")
    for point in points:
        if fmt.known(point.get("epsilon")):
            at, text = (point["sparsity"], point[measure]), f"ε {fmt.setting(point['epsilon'])}"
            axis.annotate(text, at, shift, textcoords="offset points", ha=side, fontsize=7, color=colour)


def _scheme_points(points: Sequence[Mapping[str, Any]], scheme: str, measure: str) -> list[Mapping[str, Any]]:
    usable = [
        point
        for point in points
        if str(point.get("scheme") or "") == scheme
        and fmt.known(point.get("sparsity"))
        and fmt.known(point.get(measure))
    ]
    return sorted(usable, key=lambda point: point["sparsity"])


def _layer_axis(axis: Any, names: Sequence[str]) -> None:
    """Names down the left side, the first on top, without an axis line."""
    axis.set_yticks(range(len(names)), [fmt.elide(name) for name in names], color=PALETTE["ink"])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _height(rows: Sequence[object]) -> float:
    return 0.55 + _ROW * max(1, len(rows))


def _percent_tick(value: float, _: object) -> str:
    return f"{round(100 * value, 4):g} %"


def _matrix(weight: ArrayLike) -> NDArray[np.floating]:
    matrix = np.asarray(weight, dtype=np.float64)
    return matrix.reshape(len(matrix), -1) if matrix.ndim != 2 else matrix


def _kept(weight: NDArray[np.floating]) -> float:
    return np.count_nonzero(weight) / weight.size if weight.size else 0.0
