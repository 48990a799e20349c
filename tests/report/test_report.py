"""The report: its sums, its table, its dictionary and back."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nettrim.errors import InputError
from nettrim.report import Report
from nettrim.results import LayerResult


def test_sparsity_counts_zeros_over_all_layers_skipped_ones_included(
    report: Callable[..., Report], layer: Callable[..., Any], skipped: Callable[..., Any]
) -> None:
    one = layer("one", (30, 40), 0.9)
    result = report(one, skipped())
    zeros = int((one.weight_after == 0).sum())
    assert result.sparsity == pytest.approx(zeros / (30 * 40 + 216))
    assert result.nonzeros_before == int(one.weight_before.count_nonzero()) + 216
    assert result.nonzeros_after == int(one.weight_after.count_nonzero()) + 216
    assert result.layers == (one, result.layers[1])
    assert result.network.samples == 1200


def test_certified_needs_every_trimmed_layer_and_at_least_one(
    report: Callable[..., Report], layer: Callable[..., Any], skipped: Callable[..., Any]
) -> None:
    assert report(layer("a"), skipped()).certified
    assert not report(layer("a"), layer("b", certified=False)).certified
    assert not report(skipped()).certified


def test_the_table_names_every_layer_and_every_reason(full: Report) -> None:
    text = str(full)
    lines = text.splitlines()
    for layer in full.layers:
        assert any(line.startswith(layer.name) for line in lines)
    assert "skipped stem <b>: its input is shared by two layers" in lines
    assert any(line.startswith("whole net: 276,416 -> ") and "2 of 4" in line for line in lines)
    assert "0.152  (Theorem 1)" in text and "0.0213  (1,200 samples)" in text and "0.0254  (300 samples)" in text
    assert "note: 1 sample was a duplicate <i>" in lines
    rule = lines[1]
    assert set(rule) == {"-", " "} and all(len(line) <= len(rule) for line in lines[: 2 + len(full.layers)])


def test_the_table_without_bound_and_holdout(report: Callable[..., Report], layer: Callable[..., Any]) -> None:
    network = {"bound": None, "bound_reason": "the layers do not form a chain", "discrepancy_holdout": None}
    text = str(report(layer(), network=network))
    assert "none (the layers do not form a chain)" in text
    assert "not measured (no held-out data)" in text


def test_a_terminal_is_not_steered_by_a_name(report: Callable[..., Report], layer: Callable[..., Any]) -> None:
    text = str(report(layer("a\x1b[2Jb"), notes=("\x07bell",)))
    assert "\x1b" not in text and "\x07" not in text


def test_the_dictionary_has_the_promised_keys(full: Report) -> None:
    data = full.to_dict()
    assert {"sparsity", "nonzeros_before", "nonzeros_after", "layers", "network"} <= data.keys()
    promised = {
        "name", "shape", "nonzeros_before", "nonzeros_after", "epsilon", "discrepancy", "gap", "certified", "skipped",
    }  # fmt: skip
    assert all(promised <= layer.keys() for layer in data["layers"])
    assert {"bound", "discrepancy", "discrepancy_holdout", "theorem", "bound_reason", "samples", "samples_holdout"} <= (
        data["network"].keys()
    )
    assert data["sparsity"] == 1 - data["nonzeros_after"] / sum(prod(layer["shape"]) for layer in data["layers"])
    skipped = data["layers"][-1]
    assert skipped["epsilon"] is None and skipped["gap"] is None and skipped["skipped"].startswith("its input")


def test_the_dictionary_survives_strict_json_and_comes_back(full: Report) -> None:
    text = json.dumps(full.to_dict(), allow_nan=False)
    back = Report.from_dict(json.loads(text))
    assert back.to_dict() == full.to_dict()
    assert str(back) == str(full)
    assert back.layers[0].weight_before is None


def test_every_field_of_a_layer_comes_back(report: Callable[..., Report], layer: Callable[..., Any]) -> None:
    """Every field is given a value that is not its default, so that one that is dropped is seen."""
    given = layer(distance=0.03, scheme="cascade", skipped="why")
    back = Report.from_dict(report(given).to_dict()).layers[0]
    for entry in fields(LayerResult):
        if entry.name not in ("weight_before", "weight_after"):
            assert getattr(given, entry.name) != entry.default, entry.name
            assert getattr(back, entry.name) == getattr(given, entry.name), entry.name


def test_what_json_has_no_word_for_becomes_null(report: Callable[..., Report], layer: Callable[..., Any]) -> None:
    odd = report(
        layer(gap=math.inf, discrepancy=math.nan, objective=np.float32(2.5), nonzeros_after=np.int64(7)),
        network={"bound": math.inf, "discrepancy": math.nan},
        gain={"weights": {"dense": np.int64(5)}},
        recipe={"path": Path("a"), "ignore": ("x", "y"), "targets": {"b", "a"}},
        tradeoff=[{"sparsity": np.float64(0.5), "discrepancy": np.array(math.nan)}],
    )
    data = json.loads(json.dumps(odd.to_dict(), allow_nan=False))
    assert data["layers"][0]["gap"] is None and data["layers"][0]["discrepancy"] is None
    assert data["layers"][0]["objective"] == 2.5 and data["layers"][0]["nonzeros_after"] == 7
    assert data["network"]["bound"] is None and data["network"]["discrepancy"] is None
    assert data["gain"] == {"weights": {"dense": 5}}
    assert data["recipe"] == {"path": "a", "ignore": ["x", "y"], "targets": ["a", "b"]}
    assert data["tradeoff"] == [{"sparsity": 0.5, "discrepancy": None}]
    assert math.isnan(Report.from_dict(data).network.discrepancy)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.pop("layers"), r"`report\['layers'\]` should be present"),
        (lambda data: data.update(network=3), r"`report\['network'\]` should be a dictionary. Got 3."),
        (lambda data: data["layers"][1].pop("shape"), r"`report\['layers'\]\[1\]\['shape'\]` should be present"),
        (lambda data: data["layers"][0].update(gap="small"), r"\['gap'\]` should be a int or float. Got 'small'."),
        (lambda data: data.update(format=99), "Update nettrim"),
    ],
)
def test_a_damaged_dictionary_is_refused_by_name(full: Report, damage: Callable[[Any], Any], message: str) -> None:
    data = full.to_dict()
    damage(data)
    with pytest.raises(InputError, match=message):
        Report.from_dict(data)


def _places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield from _places(data[key], (*at, key))


def test_any_value_of_any_type_is_read_or_refused_in_a_sentence(full: Report) -> None:
    """Every entry of a report replaced by values of every type JSON has: a report that shows itself, or InputError."""
    data = json.loads(json.dumps(full.to_dict()))
    refused = 0
    for place in _places(data):
        for value in (None, 3, -1, 1.5, math.nan, 10**400, True, "x", [], [1], {}, {"a": "b"}):
            damaged = value
            if place:
                damaged = copy.deepcopy(data)
                inner = damaged
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = value
            try:
                found = Report.from_dict(damaged)
            except InputError as error:
                assert "should be" in str(error) and len(str(error)) < 300
                refused += 1
            else:
                assert str(found) and found.to_dict()
    assert refused > 300


def test_a_report_is_frozen(full: Report) -> None:
    with pytest.raises(AttributeError):
        full.recipe = {}  # type: ignore[misc]
    assert replace(full, recipe={"epsilon": 1}).recipe == {"epsilon": 1}


def test_the_coloured_table_shows_the_same_cells(full: Report) -> None:
    console = pytest.importorskip("rich.console").Console(width=200, color_system=None, record=True)
    with console.capture() as captured:
        console.print(full.rich())
    text = captured.get()
    assert "[red]" in text  # a name is never markup
    assert "96.3 %" in text and full.headline in text and "skipped stem <b>" in text
