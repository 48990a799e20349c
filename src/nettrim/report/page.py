"""One self-contained HTML page for one report or several: no network, no scripts, light and dark."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nettrim.errors import InputError, MissingExtraError, should
from nettrim.report import explain, files, gain, plots, rows
from nettrim.report import format as fmt
from nettrim.results import LayerResult

if TYPE_CHECKING:
    from jinja2 import Environment

    from nettrim.report.report import Report

MATRICES = 12  # a page draws the weights of at most so many layers a report: the largest ones


@dataclass(frozen=True, eq=False)
class Section:
    """One report on a page, under its own heading; `text` is plain text, a blank line ends a paragraph."""

    name: str
    report: Report
    text: str = ""


def render_page(title: str, sections: Sequence[Section], path: str | os.PathLike[str]) -> Path:
    """Write a page with a summary on top and one part a section; return where it is.

    Raises InputError when there is no section or the file cannot be written, MissingExtraError without
    matplotlib or jinja2.
    """
    return files.write_text(path, page_html(title, sections))


def page_html(title: str, sections: Sequence[Section]) -> str:
    """The page that render_page writes, as text."""
    if not sections:
        raise InputError(should("sections", "at least one Section", "none"))
    environment = _environment()
    views = [_section_view(section) for section in sections]
    return environment.get_template("page.html.j2").render(
        title=fmt.clean(title),
        sections=views,
        compare=[_compare_row(section) for section in sections] if len(sections) > 1 else [],
        tradeoff=_tradeoff(sections),
        promises=explain.PROMISES,
    )


def _environment() -> Environment:
    try:
        import jinja2  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "jinja2").partition(".")[0], "report") from error
    # autoescape: names of layers, notes and recipes are text from outside
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> str:
    return (resources.files("nettrim.report") / "templates" / name).read_text(encoding="utf-8")


def _section_view(section: Section) -> dict[str, Any]:
    """Everything the template shows of one section; figures are SVG made here, the rest is escaped text."""
    report = section.report
    names = [layer.name for layer in report.layers]
    both = [layer for layer in report.layers if layer.weight_before is not None and layer.weight_after is not None]
    matrices = [layer for layer in both if math.prod(layer.shape)]  # of an empty one there is nothing to draw
    drawn = sorted(matrices, key=lambda layer: -np.prod(layer.shape))[:MATRICES]
    network = report.network
    return {
        "name": fmt.clean(section.name),
        "paragraphs": [paragraph.strip() for paragraph in section.text.split("\n\n") if paragraph.strip()],
        "summary": explain.summary(report),
        "tiles": _tiles(report),
        "columns": rows.COLUMNS,
        "layers": [_layer_view(layer) for layer in report.layers],
        "total": report.headline,
        "sums": {
            "before": fmt.count(report.nonzeros_before),
            "after": fmt.count(report.nonzeros_after),
            "sparsity": fmt.percent(report.sparsity),
            "certified": f"{sum(layer.certified for layer in report.trimmed)} of {len(report.trimmed)}",
        },
        "sparsity_svg": plots.sparsity_bars(
            names,
            [rows.sparsity(layer) for layer in report.layers],
            [layer.skipped is not None for layer in report.layers],
        )
        if names
        else "",
        "tolerance_svg": plots.tolerance_dots(
            names,
            [layer.epsilon for layer in report.layers],
            [layer.discrepancy for layer in report.layers],
            [layer.discrepancy_select for layer in report.layers],
        )
        if report.trimmed
        else "",
        "network_svg": plots.network_dots(network.bound, network.discrepancy, network.discrepancy_holdout),
        "network": {
            "bound": fmt.number(network.bound),
            "reason": network.bound_reason,
            "theorem": network.theorem,
            "has_bound": network.bound is not None,
            "discrepancy": fmt.number(network.discrepancy),
            "holdout": fmt.number(network.discrepancy_holdout),
            "has_holdout": network.discrepancy_holdout is not None,
            "samples": fmt.count(network.samples) if network.samples else "",
            "samples_holdout": fmt.count(network.samples_holdout) if network.samples_holdout else "",
        },
        "matrices": [_matrix_view(layer) for layer in matrices if layer in drawn],
        "undrawn": len(matrices) - len(drawn),
        "without_weights": bool(report.trimmed) and not matrices,
        "gain": gain.gain_table(report.gain),
        "recipe": [(str(key), _recipe_value(value)) for key, value in (report.recipe or {}).items()],
        "notes": [fmt.clean(note) for note in report.result.notes],
    }


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """The few numbers to see first: (label, value, remark)."""
    network = report.network
    held_out = fmt.percent(network.discrepancy_holdout)
    tiles = [
        (
            "sparsity",
            fmt.percent(report.sparsity),
            f"{fmt.count(report.nonzeros_after)} of {fmt.count(report.weights)} kept",
        ),
        (
            "output moved by",
            fmt.percent(network.discrepancy),
            "calibration data" + (f"; {held_out} held-out" if network.discrepancy_holdout is not None else ""),
        ),
        (
            "certified",
            f"{sum(layer.certified for layer in report.trimmed)} of {len(report.trimmed)}",
            "trimmed layers"
            + (f", {skipped} skipped" if (skipped := len(report.layers) - len(report.trimmed)) else ""),
        ),
    ]
    accuracy = _accuracy(report)
    if accuracy is not None:
        tiles.insert(2, ("accuracy", fmt.percent(accuracy[1]), f"from {fmt.percent(accuracy[0])} before"))
    return tiles


def _compare_row(section: Section) -> tuple[str, ...]:
    report, network = section.report, section.report.network
    accuracy = _accuracy(report) or (None, None)
    return (
        fmt.clean(section.name),
        fmt.percent(report.sparsity),
        fmt.count(report.nonzeros_after),
        fmt.number(network.bound),
        fmt.number(network.discrepancy),
        fmt.number(network.discrepancy_holdout),
        fmt.percent(accuracy[0]),
        fmt.percent(accuracy[1]),
        f"{sum(layer.certified for layer in report.trimmed)} of {len(report.trimmed)}",
    )


def _accuracy(report: Report) -> tuple[float | None, float | None] | None:
    """Accuracy of the original and of the trimmed network, where the gain tells."""
    values = (report.gain or {}).get("accuracy")
    if not isinstance(values, Mapping) or not (fmt.known(values.get("dense")) and fmt.known(values.get("trimmed"))):
        return None
    return values["dense"], values["trimmed"]


def _tradeoff(sections: Sequence[Section]) -> str:
    """One curve for the page: the points of all its reports, each point once, with the trims shown ringed."""
    points = list({repr(sorted(point.items())): point for s in sections for point in s.report.tradeoff}.values())
    if not points:
        return ""
    here, dense = [], None
    for section in sections:
        accuracy = _accuracy(section.report)
        dense = accuracy[0] if accuracy else dense
        here.append(
            {
                "sparsity": section.report.sparsity,
                "discrepancy": section.report.network.discrepancy,
                "accuracy": accuracy[1] if accuracy else None,
            }
        )
    return plots.tradeoff_curve(points, here, dense)


def _layer_view(layer: LayerResult) -> dict[str, Any]:
    return {
        "cells": rows.cells(layer),
        "skipped": layer.skipped,
        "exceeds": rows.exceeds(layer),
        "certified": layer.certified,
        "fill": f"{100 * rows.sparsity(layer):.1f}",
    }


def _matrix_view(layer: LayerResult) -> dict[str, Any]:
    before, after = _array(layer.weight_before), _array(layer.weight_after)
    neurons = ", ".join(f"{fmt.count(number)} {status}" for status, number in layer.neurons.items() if number)
    return {
        "name": fmt.clean(layer.name),
        "shape": fmt.shape(layer.shape),
        "sparsity": fmt.percent(rows.sparsity(layer)),
        "inputs": f"{fmt.count(int(after.any(axis=0).sum()))} of {fmt.count(after.shape[1])}",
        "outputs": f"{fmt.count(int(after.any(axis=1).sum()))} of {fmt.count(after.shape[0])}",
        "neurons": neurons,
        "adjacency_svg": plots.adjacency(before, after),
        "histogram_svg": plots.histogram(before, after, height=plots.panel_height(*before.shape)),
    }


def _array(weight: Any) -> NDArray[np.floating]:
    matrix = weight.detach().double().cpu().numpy()
    return matrix.reshape(len(matrix), math.prod(matrix.shape[1:]))


def _recipe_value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_recipe_value(entry)}" for key, entry in value.items())
    return fmt.setting(value) if isinstance(value, float) else str(value)
