"""A report as a dictionary that JSON can hold, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from nettrim.errors import InputError, should
from nettrim.report import rows
from nettrim.results import LayerResult, NetworkResult, TrimResult

FORMAT = 1
_MOST = 2**63
_TENSORS = ("weight_before", "weight_after")
_LAYER_FIELDS = tuple(field.name for field in fields(LayerResult) if field.name not in _TENSORS)
_NETWORK_FIELDS = tuple(field.name for field in fields(NetworkResult))


def plain(value: object) -> Any:
    """The same value in JSON's types: NaN and infinities become None, what JSON has no word for its text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [plain(entry) for entry in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    item = getattr(value, "tolist", None)  # NumPy and torch values
    return plain(item()) if callable(item) else str(value)


def layer_to_dict(layer: LayerResult) -> dict[str, Any]:
    """One layer's record without its weights, plus its `sparsity`."""
    return {**plain({name: getattr(layer, name) for name in _LAYER_FIELDS}), "sparsity": rows.sparsity(layer)}


def network_to_dict(network: NetworkResult) -> dict[str, Any]:
    """The whole network's record."""
    return plain({name: getattr(network, name) for name in _NETWORK_FIELDS})


def result_from_dict(data: object) -> TrimResult:
    """The TrimResult a report's dictionary tells of; the weights themselves are not in it.

    Raises InputError naming the key that is missing or has the wrong type.
    """
    if not isinstance(data, Mapping):
        raise InputError(should("report", "a dictionary made by Report.to_dict()", type(data).__name__))
    version = data.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise InputError(should("report['format']", f"at most {FORMAT}", _shown(version), "Update nettrim to read it."))
    layers = _entry(data, "layers", "report", (list, tuple))
    network = _entry(data, "network", "report", (Mapping,))
    notes = _given(data, "notes", "report", (list, tuple), ())
    return TrimResult(
        layers=tuple(_layer(entry, f"report['layers'][{index}]") for index, entry in enumerate(layers)),
        network=_network(network, "report['network']"),
        seconds=_optional(data, "seconds", "report") or 0.0,
        scheme=_text(data, "scheme", "report"),
        notes=tuple(str(note) for note in notes),
    )


def extras_from_dict(data: Mapping[str, Any]) -> tuple[Any, tuple[Mapping[str, Any], ...], Any]:
    """The recipe, the trade-off curve's points and the gain of a report's dictionary. Raises InputError."""
    points = _given(data, "tradeoff", "report", (list, tuple), ())
    for index, point in enumerate(points):
        where = f"report['tradeoff'][{index}]"
        if not isinstance(point, Mapping):
            raise InputError(should(where, "a dictionary", _shown(point)))
        for key in ("epsilon", "sparsity", "discrepancy", "accuracy"):
            _optional(point, key, where)
        _text(point, "scheme", where)
    recipe, gain = (_given(data, key, "report", (Mapping,), None) for key in ("recipe", "gain"))
    for name, row in (gain or {}).items():
        for stage in row if isinstance(row, Mapping) else ():
            if isinstance(row[stage], int | float):
                _optional(row, stage, f"report['gain']['{name}']")
    return recipe, tuple(points), gain


def _layer(data: object, where: str) -> LayerResult:
    if not isinstance(data, Mapping):
        raise InputError(should(where, "a dictionary", type(data).__name__))
    shape = _entry(data, "shape", where, (list, tuple))
    neurons = _given(data, "neurons", where, (Mapping,), {})
    return LayerResult(
        name=_entry(data, "name", where, (str,)),
        kind=_text(data, "kind", where),
        shape=tuple(_whole(size, f"{where}['shape']") for size in shape),
        activation=_text(data, "activation", where),
        nonzeros_before=_whole(_entry(data, "nonzeros_before", where, (int,)), f"{where}['nonzeros_before']"),
        nonzeros_after=_whole(_entry(data, "nonzeros_after", where, (int,)), f"{where}['nonzeros_after']"),
        epsilon=_optional(data, "epsilon", where),
        discrepancy=_optional(data, "discrepancy", where),
        discrepancy_select=_optional(data, "discrepancy_select", where),
        distance=_optional(data, "distance", where),
        objective=_optional(data, "objective", where),
        bound=_optional(data, "bound", where),
        gap=_optional(data, "gap", where),
        certified=_given(data, "certified", where, (bool,), False),
        scheme=_text(data, "scheme", where),
        skipped=_given(data, "skipped", where, (str,), None),
        neurons={str(status): _whole(number, f"{where}['neurons']") for status, number in neurons.items()},
        iterations=_whole(data.get("iterations") or 0, f"{where}['iterations']"),
        seconds=_optional(data, "seconds", where) or 0.0,
    )


def _network(data: Mapping[str, Any], where: str) -> NetworkResult:
    discrepancy = _optional(data, "discrepancy", where)
    return NetworkResult(
        bound=_optional(data, "bound", where),
        bound_reason=_text(data, "bound_reason", where),
        discrepancy=math.nan if discrepancy is None else discrepancy,
        discrepancy_holdout=_optional(data, "discrepancy_holdout", where),
        theorem=_text(data, "theorem", where),
        samples=_whole(data.get("samples") or 0, f"{where}['samples']"),
        samples_holdout=_whole(data.get("samples_holdout") or 0, f"{where}['samples_holdout']"),
    )


def _entry(data: Mapping[str, Any], key: str, where: str, types: tuple[type, ...]) -> Any:
    if key not in data:
        raise InputError(should(f"{where}['{key}']", "present", "no such key"))
    if not isinstance(data[key], types):
        wanted = " or ".join("dictionary" if kind is Mapping else kind.__name__ for kind in types)
        raise InputError(should(f"{where}['{key}']", f"a {wanted}", _shown(data[key])))
    return data[key]


def _given(data: Mapping[str, Any], key: str, where: str, types: tuple[type, ...], default: Any) -> Any:
    """An entry that may be missing or null."""
    return default if data.get(key) is None else _entry(data, key, where, types)


def _text(data: Mapping[str, Any], key: str, where: str) -> str:
    return _given(data, key, where, (str,), "")


def _optional(data: Mapping[str, Any], key: str, where: str) -> float | None:
    number = _given(data, key, where, (int, float), None)
    try:
        return None if number is None else float(number)
    except OverflowError:
        raise InputError(should(f"{where}['{key}']", "a number that a float holds", _shown(number))) from None


def _whole(number: object, where: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < _MOST:
        raise InputError(should(where, "a whole number from 0 to 2^63", _shown(number)))
    return number


def _shown(value: object) -> str:
    """A value for a message, which may be longer than one wants to read, or than Python prints."""
    if isinstance(value, int) and abs(value) >= _MOST:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
