"""What to do: every option of a trim as one frozen value, checked once, readable from and writable to TOML."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from nettrim.errors import RecipeError, near, should
from nettrim.programs import penalties
from nettrim.programs.penalties import L1, Penalty

SCHEMES = ("parallel", "cascade")
CONSTRAINTS = ("distance", "strict")
SLACKS = ("published", "positive")
BATCHNORMS = ("fold", "reestimate")
DEFAULT = "*"  # in a table by layer name: every layer that is not named
_PENALTIES = ("L1", "ElasticNet", "L1Frobenius", "MaxNorm", "GroupL2Inputs", "GroupL2Outputs")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Recipe:
    """Every option of `nettrim.trim`.

    Options that may differ by layer take one value or a table {layer name: value}; the name "*" stands for
    every layer not named. Raises RecipeError, in one sentence, for a value that cannot be used.
    """

    epsilon: float | Mapping[str, float]  # eps_r of N section 3 (relative), or absolute with relative=False
    relative: bool = True
    scheme: str | Mapping[str, str] = "parallel"  # "parallel" (N Algorithm 1) or "cascade" (N Algorithm 2)
    gamma: float | Mapping[str, float] = 1.1  # cascade: inflation rate, >= 1 (N eq. 7)
    kappa: float = 1.0  # cascade: risk coefficient of the last layer, in (0, 1] (A section 3.3)
    budget: str | int = "layer"  # "layer", "neuron", or a number of clusters (A section 4.1)
    penalty: Penalty | Mapping[str, Penalty] = field(default_factory=L1)
    penalize_bias: bool = False
    constraint: str = "distance"  # or "strict", the papers' C_eps (N eq. 3)
    slack: str = "published"  # strict cascade: V = W xhat (N eq. 6), or "positive": max(W xhat, 0)
    refit: bool = True
    targets: tuple[str, ...] | None = None  # None: every layer that can be trimmed
    ignore: tuple[str, ...] = ()
    batchnorm: str = "fold"  # into the layers before, or "reestimate": keep it, its statistics those of the trimmed net
    positions: int | None = None  # convolutions: how many positions a sample contributes; None: the front end's rule
    num_calibration_samples: int | None = None  # calibrate on so many of the samples, drawn with `seed`; None: on all
    holdout: float | None = None  # fraction of the data measured on only; None: a tenth from 50 samples on
    tolerance: float = 1e-4  # relative optimality gap asked of the solver
    certificate_megabytes: float = 256.0  # larger multipliers are not kept for `verify`
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epsilon", "gamma", "kappa", "holdout", "tolerance", "certificate_megabytes"):
            object.__setattr__(self, name, _each(_plain_number, getattr(self, name)))
        _numbers("epsilon", self.epsilon, "a finite number >= 0", lambda value: value >= 0)
        _numbers("gamma", self.gamma, "a finite number >= 1", lambda value: value >= 1)
        _choices("scheme", self.scheme, SCHEMES)
        _choices("constraint", self.constraint, CONSTRAINTS)
        _choices("slack", self.slack, SLACKS)
        _choices("batchnorm", self.batchnorm, BATCHNORMS)
        for name in ("relative", "penalize_bias", "refit"):
            if not isinstance(getattr(self, name), bool):
                raise RecipeError(should(name, "True or False", repr(getattr(self, name))))
        if not (_is_number(self.kappa) and 0 < self.kappa <= 1):
            raise RecipeError(should("kappa", "a number in (0, 1]", repr(self.kappa)))
        if not (self.budget in ("layer", "neuron") if isinstance(self.budget, str) else _is_count(self.budget)):
            raise RecipeError(should("budget", "'layer', 'neuron' or a number of clusters >= 1", repr(self.budget)))
        for name in ("scheme", "penalty"):
            object.__setattr__(self, name, _each(lambda value: value, getattr(self, name)))
        for penalty in _values(self.penalty):
            if not isinstance(penalty, Penalty):
                raise RecipeError(should("penalty", "a nettrim penalty such as nettrim.L1()", repr(penalty)))
        object.__setattr__(self, "targets", None if self.targets is None else _names("targets", self.targets))
        object.__setattr__(self, "ignore", _names("ignore", self.ignore))
        if self.targets is not None and not self.targets:
            raise RecipeError(should("targets", "None or at least one layer name", "an empty list"))
        for name in ("positions", "num_calibration_samples"):
            if getattr(self, name) is not None and not _is_count(getattr(self, name)):
                raise RecipeError(should(name, "None or a whole number >= 1", repr(getattr(self, name))))
        if self.holdout is not None and not (_is_number(self.holdout) and 0 <= self.holdout < 1):
            raise RecipeError(should("holdout", "a fraction in [0, 1)", repr(self.holdout)))
        if not (_is_number(self.tolerance) and 0 < self.tolerance < 1):
            raise RecipeError(should("tolerance", "a number in (0, 1)", repr(self.tolerance)))
        if not (_is_number(self.certificate_megabytes) and self.certificate_megabytes >= 0):
            raise RecipeError(should("certificate_megabytes", "a finite number >= 0", repr(self.certificate_megabytes)))
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise RecipeError(should("seed", "a whole number >= 0 and below 2^63", repr(self.seed)))

    def scheme_of(self, layer: str) -> str:
        """The scheme of a layer; "parallel" for one that a table does not name."""
        return _lookup("scheme", self.scheme, layer, "parallel")

    def epsilon_of(self, layer: str) -> float:
        """The epsilon of a layer; raises RecipeError when a table neither names it nor has "*"."""
        return float(_lookup("epsilon", self.epsilon, layer, None))

    def gamma_of(self, layer: str) -> float:
        """The inflation rate of a layer; 1.1 for one that a table does not name."""
        return float(_lookup("gamma", self.gamma, layer, 1.1))

    def penalty_of(self, layer: str) -> Penalty:
        """The penalty of a layer; L1 for one that a table does not name."""
        return _lookup("penalty", self.penalty, layer, L1())

    def check_layers(self, names: Iterable[str]) -> None:
        """Refuse tables that name a layer which is not trimmed, or leave one without an epsilon."""
        known = list(names)
        for option in ("epsilon", "scheme", "gamma", "penalty"):
            table = getattr(self, option)
            if isinstance(table, Mapping):
                for name in table:
                    if name != DEFAULT and name not in known:
                        cure = near(name, known)
                        raise RecipeError(should(option, "a table of layers that are trimmed", repr(name), cure))
        for name in known:
            self.epsilon_of(name)

    def replace(self, **changes: Any) -> Self:
        """The same recipe with some options changed, checked again."""
        _check_keys(changes)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON's and TOML's types; options that are None are left out.

        A penalty becomes {"kind": "L1", ...}; per-entry costs are only named, not listed.
        """
        data: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "penalty":
                value = _each(_penalty_to_dict, value)
            elif isinstance(value, Mapping):
                value = dict(value)
            elif isinstance(value, tuple):
                value = list(value)
            if value is not None:
                data[entry.name] = value
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The recipe that `to_dict` wrote; raises RecipeError for an unknown key, naming the near ones."""
        _check_keys(data)
        if "epsilon" not in data:
            raise RecipeError(should("epsilon", "given", "no such key"))
        options = dict(data)
        if "penalty" in options:
            options["penalty"] = _penalties_from(options["penalty"])
        return cls(**options)

    def to_toml(self) -> str:
        """The recipe as a TOML document."""
        data = self.to_dict()
        tables = {name: value for name, value in data.items() if isinstance(value, dict)}
        lines = [f"{name} = {_toml(value)}" for name, value in data.items() if name not in tables]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f"{_toml_key(key)} = {_toml(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The recipe of a TOML document; raises RecipeError when it is not one."""
        return cls.from_dict(cls.parse(text))

    @staticmethod
    def parse(text: str) -> dict[str, Any]:
        """The options of a TOML document, unchecked; raises RecipeError when it is not one."""
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(should("recipe", "a TOML document", f"a mistake: {error}")) from error

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The recipe of a TOML file; raises RecipeError when it cannot be read."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(should("recipe", "a TOML file that can be read", f"{str(path)!r} ({error})")) from error
        return cls.from_toml(text)


OPTIONS = tuple(entry.name for entry in fields(Recipe))


def _check_keys(keys: Iterable[str]) -> None:
    for key in keys:
        if key not in OPTIONS:
            cure = near(str(key), OPTIONS)
            raise RecipeError(should("recipe", "made of known options", f"the unknown option {key!r}", cure))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain_number(value: Any) -> Any:
    """Numbers of other libraries as Python's; anything else as it is."""
    return float(value) if isinstance(value, Real) and type(value) not in (bool, int, float) else value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _values(value: Value | Mapping[str, Value]) -> list[Value]:
    return list(value.values()) if isinstance(value, Mapping) else [value]


def _each(function: Any, value: Any) -> Any:
    return {name: function(one) for name, one in value.items()} if isinstance(value, Mapping) else function(value)


def _numbers(name: str, value: object, be: str, valid: Any) -> None:
    for number in _values(value):
        if not (_is_number(number) and valid(number)):
            cure = f"Set it, for example {name}=0.05." if value is None else ""
            raise RecipeError(should(name, be, repr(value), cure))


def _choices(name: str, value: object, known: tuple[str, ...]) -> None:
    for choice in _values(value):
        if choice not in known:
            cure = near(choice, known) if isinstance(choice, str) else ""
            raise RecipeError(should(name, "one of " + ", ".join(map(repr, known)), repr(choice), cure))


def _names(option: str, value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise RecipeError(should(option, "layer names", repr(value)))
    return names  # type: ignore[return-value]


def _lookup(option: str, value: Any, layer: str, otherwise: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    found = value.get(layer, value.get(DEFAULT, otherwise))
    if found is None:
        cure = f"Name it, or add {DEFAULT!r}."
        raise RecipeError(should(option, "given for every layer", f"a table without {layer!r}", cure))
    return found


def _penalty_to_dict(penalty: Penalty) -> dict[str, Any]:
    data: dict[str, Any] = {"kind": type(penalty).__name__}
    for entry in fields(penalty):  # type: ignore[arg-type]
        value = getattr(penalty, entry.name)
        if isinstance(value, Tensor):
            data[entry.name] = f"tensor {'x'.join(map(str, value.shape))}" if value.ndim else float(value)
        elif value is not None:
            data[entry.name] = value
    return data


def _penalties_from(value: Any) -> Any:
    if isinstance(value, Penalty):
        return value
    if not isinstance(value, Mapping):
        raise RecipeError(should("penalty", 'a table such as {kind = "L1"}', repr(value)))
    if "kind" in value:
        return _penalty_from(value)
    return {name: _penalties_from(one) for name, one in value.items()}


def _penalty_from(data: Mapping[str, Any]) -> Penalty:
    kind = data["kind"]
    if kind not in _PENALTIES:
        raise RecipeError(should("penalty", "a known kind", repr(kind), near(str(kind), _PENALTIES)))
    build = getattr(penalties, kind)
    known = [entry.name for entry in fields(build)]
    options = {key: value for key, value in data.items() if key != "kind"}
    for key, entry in options.items():
        if key not in known:
            raise RecipeError(should("penalty", f"made of {kind}'s options", f"{key!r}", near(str(key), known)))
        if isinstance(entry, str):
            cure = "Per-entry arrays can only be given in Python."
            raise RecipeError(should(f"penalty.{key}", "numbers", repr(entry), cure))
        if isinstance(entry, list):
            options[key] = torch.tensor(entry)
    return build(**options)


def _toml_key(key: str) -> str:
    bare = key and all(char.isascii() and (char.isalnum() or char in "-_") for char in key)
    return key if bare else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, repr(value))
    if isinstance(value, str):
        return '"' + "".join(_escaped(char) for char in value) + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    raise RecipeError(should("recipe", "made of numbers, texts and tables", type(value).__name__))


def _escaped(char: str) -> str:
    return _ESCAPES.get(char) or (char if char.isprintable() else f"\\U{ord(char):08x}")


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
