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
        raise InputError(should("report['format']", f"at most {FORMAT}", repr(version), "Update nettrim to read it."))
    layers = _entry(data, "layers", "report", (list, tuple))
    network = _entry(data, "network", "report", (Mapping,))
    return TrimResult(
        layers=tuple(_layer(entry, f"report['layers'][{index}]") for index, entry in enumerate(layers)),
        network=_network(network, "report['network']"),
        seconds=float(data.get("seconds") or 0.0),
        scheme=str(data.get("scheme") or ""),
        notes=tuple(str(note) for note in data.get("notes") or ()),
    )


def _layer(data: object, where: str) -> LayerResult:
    if not isinstance(data, Mapping):
        raise InputError(should(where, "a dictionary", type(data).__name__))
    return LayerResult(
        name=_entry(data, "name", where, (str,)),
        kind=str(data.get("kind") or ""),
        shape=tuple(int(size) for size in _entry(data, "shape", where, (list, tuple))),
        activation=str(data.get("activation") or ""),
        nonzeros_before=_entry(data, "nonzeros_before", where, (int,)),
        nonzeros_after=_entry(data, "nonzeros_after", where, (int,)),
        epsilon=_optional(data, "epsilon", where),
        discrepancy=_optional(data, "discrepancy", where),
        discrepancy_select=_optional(data, "discrepancy_select", where),
        distance=_optional(data, "distance", where),
        objective=_optional(data, "objective", where),
        bound=_optional(data, "bound", where),
        gap=_optional(data, "gap", where),
        certified=bool(data.get("certified")),
        scheme=str(data.get("scheme") or ""),
        skipped=None if data.get("skipped") is None else str(data["skipped"]),
        neurons={str(status): int(number) for status, number in (data.get("neurons") or {}).items()},
        iterations=int(data.get("iterations") or 0),
        seconds=float(data.get("seconds") or 0.0),
    )


def _network(data: Mapping[str, Any], where: str) -> NetworkResult:
    discrepancy = _optional(data, "discrepancy", where)
    return NetworkResult(
        bound=_optional(data, "bound", where),
        bound_reason=str(data.get("bound_reason") or ""),
        discrepancy=math.nan if discrepancy is None else discrepancy,
        discrepancy_holdout=_optional(data, "discrepancy_holdout", where),
        theorem=str(data.get("theorem") or ""),
        samples=int(data.get("samples") or 0),
        samples_holdout=int(data.get("samples_holdout") or 0),
    )


def _entry(data: Mapping[str, Any], key: str, where: str, types: tuple[type, ...]) -> Any:
    if key not in data:
        raise InputError(should(f"{where}['{key}']", "present", "no such key"))
    if not isinstance(data[key], types):
        wanted = " or ".join(kind.__name__ for kind in types)
        raise InputError(should(f"{where}['{key}']", f"a {wanted}", repr(data[key])))
    return data[key]


def _optional(data: Mapping[str, Any], key: str, where: str) -> float | None:
    return None if data.get(key) is None else float(_entry(data, key, where, (int, float)))
