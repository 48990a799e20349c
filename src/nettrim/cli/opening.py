"""What MODEL may be: an ONNX file, a Python function that builds a module, or, when trusted, an exported program."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from nettrim.cli.exported import read_exported
from nettrim.cli.screen import results_only
from nettrim.data import PICKLES
from nettrim.errors import InputError, ModelError, near, should
from nettrim.models.shrink import load_shrunk
from nettrim.saving import INDEX, load

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_FACTORY_WORDS = "package.module:function, a function that returns the model"
_SAVE_ELSE = (
    "A pickle can run any code when it is opened. Save the weights with safetensors.torch.save_file and name the "
    "function that builds the model (package.module:function --weights FILE.safetensors), or export it to ONNX."
)


@dataclass(frozen=True, eq=False)
class Opened:
    """A model, or the path of an ONNX file, which is opened where it is used."""

    name: str
    path: Path | None = None  # of an .onnx file
    external: bool = False  # whether its tensors may be in other files
    module: nn.Module | None = None


def open_model(model: str, weights: Path | None = None, *, trust: bool = False, external: bool = False) -> Opened:
    """Open what a user named as MODEL.

    weights: a .safetensors file for the module, or a directory that `nettrim trim` wrote for it. trust: whether
    .pt2 files, which can run code, may be opened. external: whether ONNX tensors may be in other
    files. Raises ModelError in one sentence for anything else.
    """
    path = Path(model)
    suffix = path.suffix.lower()
    if _FACTORY.fullmatch(model) and not path.exists():
        with results_only():
            module = _build(model)
        return Opened(model, module=_with_weights(module, weights))
    if not path.exists():
        be = f"a file that exists, or {_FACTORY_WORDS}"
        raise ModelError(should("MODEL", be, repr(model), _near_file(path)))
    if path.is_dir():
        inside = path / "model.onnx"
        cure = f"Name {str(inside)!r}." if inside.is_file() else f"Name the .onnx file, or {_FACTORY_WORDS}."
        raise ModelError(should("MODEL", "a model", f"the directory {model!r}", cure))
    if suffix in PICKLES:
        raise ModelError(should("MODEL", "a file that cannot run code", f"the pickle {model!r}", _SAVE_ELSE))
    if suffix == ".safetensors":
        cure = f"Name the function that builds the model: package.module:function --weights {model}"
        raise ModelError(should("MODEL", "a network", f"{model!r}, which holds weights only", cure))
    if suffix == ".pt2":
        return Opened(model, module=_with_weights(_exported(path, trust), weights))
    if suffix != ".onnx":
        raise ModelError(should("MODEL", f"an .onnx file, or {_FACTORY_WORDS}", repr(model)))
    if weights is not None:
        raise InputError(should("--weights", "given with a function that builds a model only", f"{model!r} as MODEL"))
    return Opened(model, path=path, external=external)


def _build(name: str) -> nn.Module:
    """Run the function that the user named; the current folder is searched as `python -m` would."""
    place, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any
    try:
        found = importlib.import_module(place)
    except ImportError as error:
        cure = "It is looked for in the current folder and among the installed packages."
        raise ModelError(should("MODEL", "a module that can be imported", f"{place!r} ({error})", cure)) from error
    except Exception as error:
        raise ModelError(should("MODEL", "a module that can be imported", f"{place!r} ({_what(error)})")) from error
    for part in function.split("."):
        if not hasattr(found, part):
            cure = near(part, _offered(found))
            raise ModelError(should("MODEL", f"a function of {place!r}", repr(function), cure))
        found = getattr(found, part)
    try:
        module = found if isinstance(found, nn.Module) else found()
    except Exception as error:
        got = f"{name!r}, called without arguments ({_what(error)})"
        raise ModelError(should("MODEL", "a function that builds a model", got)) from error
    if not isinstance(module, nn.Module):
        raise ModelError(should("MODEL", "a function that returns a torch.nn.Module", f"a {type(module).__name__}"))
    return module


def _offered(place: Any) -> list[str]:
    """What of a module or class could build a model: what it defines itself, or else what it brought in."""
    found = {key: value for key, value in vars(place).items() if callable(value) and not key.startswith("_")}
    name = getattr(place, "__name__", "")
    own = [k for k, value in found.items() if isinstance(value, nn.Module) or getattr(value, "__module__", "") == name]
    return own or list(found)


def _with_weights(module: nn.Module, weights: Path | None) -> nn.Module:
    if weights is None:
        return module
    if weights.is_dir():
        return load(weights, module)
    if weights.suffix.lower() != ".safetensors" or not weights.is_file():
        cure = _SAVE_ELSE if weights.suffix.lower() in PICKLES else _near_file(weights)
        be = f"a .safetensors file, or a directory with {INDEX}"
        raise InputError(should("--weights", be, repr(str(weights)), cure))
    try:
        with safe_open(weights, framework="pt") as file:
            header = file.metadata() or {}
        tensors = load_file(weights)
        if "nettrim.shrunk" in header:
            plans = (json.loads(header["nettrim.shrunk"]), json.loads(header.get("nettrim.structure", "{}")))
            return load_shrunk(module, tensors, *plans)
        missing, unexpected = module.load_state_dict(tensors, strict=False)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(should("--weights", "a sound .safetensors file", f"{str(weights)!r} ({error})")) from error
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise InputError(should("--weights", "weights of this model", lines[-1].strip())) from error
    own = _shared(module)
    lacking = [name for name in missing if not any(twin not in missing for twin in own.get(name, ()))]
    if unexpected:
        raise InputError(should("--weights", "weights of this model", repr(unexpected[0]), near(unexpected[0], own)))
    if lacking:
        raise InputError(should("--weights", "complete", f"none for {lacking[0]!r}"))
    return module


def _shared(module: nn.Module) -> dict[str, list[str]]:
    """The names under which each tensor of the model is known; safetensors keeps shared ones once."""
    places: dict[int, list[str]] = {}
    state = module.state_dict()
    for name, tensor in state.items():
        places.setdefault(tensor.data_ptr(), []).append(name)
    return {name: places[tensor.data_ptr()] for name, tensor in state.items()}


def _exported(path: Path, trust: bool) -> nn.Module:
    if not trust:
        cure = "Reading one can run code that is in it: say --trust-model if you trust where it is from, or use ONNX."
        raise ModelError(should("MODEL", "a file that cannot run code", repr(str(path)), cure))
    try:
        return read_exported(path)
    except Exception as error:
        raise ModelError(should("MODEL", "an exported program", f"{str(path)!r} ({_what(error)})")) from error


def _near_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {str(path.parent)!r}."
    names = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    cure = near(path.name, names)
    return cure if cure.startswith("Did") else ""


def _what(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
