"""ONNX files: trimmed, written with what proves it, and verified from the written files alone."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from nettrim import saving
from nettrim.blocks import LayerWork
from nettrim.blocks.identity import identity
from nettrim.checkpoint import Checkpoint
from nettrim.cli.onnx_files import read_onnx
from nettrim.cli.opening import Opened
from nettrim.cli.output import MODEL, ORIGINAL, write_page
from nettrim.cli.running import Where
from nettrim.errors import DataError, InputError, ModelError, should
from nettrim.executors.local import LocalExecutor
from nettrim.layerwise import Backing, LayerOutcome
from nettrim.models.base import Layer
from nettrim.models.onnx_network import OnnxNetwork
from nettrim.recipe import Recipe
from nettrim.report import Report
from nettrim.results import Listener
from nettrim.samples import Samples, split_samples
from nettrim.schemes.whole import trim_network
from nettrim.verifying import VerifyReport, rechecker, silent, verdict
from nettrim.version import __version__

_FILES = {MODEL, ORIGINAL, saving.PROOFS, saving.REPORT, saving.RECIPE}


@dataclass(frozen=True, eq=False)
class OnnxRun:
    """A trimmed ONNX network."""

    original: bytes
    network: OnnxNetwork
    report: Report
    recipe: Recipe
    layers: tuple[LayerOutcome, ...]
    samples: Samples

    def save(self, directory: Path) -> list[str]:
        """Write model.onnx, original.onnx, the report, the recipe, and the proofs; returns remarks."""
        proofs, layers = saving.proofs_of(self)
        with saving.new_directory(directory) as temporary:
            self.network.save(temporary / MODEL, self.samples.calibration[:1])
            (temporary / ORIGINAL).write_bytes(self.original)
            (temporary / saving.PROOFS).write_bytes(save_tensors(proofs))
            (temporary / saving.REPORT).write_bytes(saving.json_bytes(self.report.to_dict()))
            (temporary / saving.RECIPE).write_bytes(self.recipe.to_toml().encode())
            index = {
                "format": saving.FORMAT,
                "versions": {
                    "nettrim": __version__,
                    "onnx": onnx.__version__,
                    "onnxruntime": onnxruntime.__version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                },
                "files": {name: hashlib.sha256((temporary / name).read_bytes()).hexdigest() for name in sorted(_FILES)},
                "data": {
                    "sha256": self.samples.digest,
                    "samples": self.samples.count,
                    "separate_holdout": self.samples.separate,
                },
                "layers": layers,
            }
            (temporary / saving.INDEX).write_bytes(saving.json_bytes(index))
            return write_page(self.report, temporary)


def trim_onnx(
    opened: Opened, data: Any, held: Any, recipe: Recipe, listener: Listener, where: Where
) -> OnnxRun:
    """Trim an ONNX file as `nettrim.trim` trims a module; activations are ONNX Runtime's."""
    model = read_onnx(opened)
    samples = split_samples(None, data, recipe.holdout if held is None else held, recipe.seed)
    network = _network(model, recipe)
    single = where.device is not None and torch.device(where.device).type != "cpu"
    store = None
    if where.checkpoint is not None:
        weights = {layer.name: layer.weight for layer in network.layers}
        store = Checkpoint.open(where.checkpoint, identity(network, weights, samples.digest, recipe))
    try:
        outcome = trim_network(
            network,
            samples.calibration,
            samples.heldout,
            recipe,
            LayerWork(where.device),
            where.executor or LocalExecutor(1 if single else None),
            listener,
            store=store,
        )
    finally:
        network.close()
    notes = (*network.notes, *outcome.result.notes, *([samples.note] if samples.note else []))
    report = Report(replace(outcome.result, notes=notes), recipe=recipe.to_dict())
    return OnnxRun(model.SerializeToString(), network, report, recipe, outcome.layers, samples)


def verify_onnx(directory: Path, data: Any) -> VerifyReport:
    """Re-derive every claim of a directory that holds ONNX files from those files and the data."""
    index = _index(directory)
    files = {name: saving.read_checked(directory, name, sha) for name, sha in index["files"].items()}
    recipe, backing, kappa, claimed = _proved(directory, index, files)
    samples = split_samples(
        None, data, 0.0 if index["data"]["separate_holdout"] else recipe.holdout, recipe.seed
    )
    if samples.digest != index["data"]["sha256"]:
        cure = "Give the file that the model was trimmed with."
        raise DataError(should("--data", "the data that the certificates were made with", "other data", cure))
    network = _network(_parsed(files[ORIGINAL], directory / ORIGINAL), recipe)
    trimmed = _network(_parsed(files[MODEL], directory / MODEL), recipe)
    weights = _matched(network, trimmed, set(backing))

    outcome = trim_network(
        network,
        samples.calibration,
        samples.heldout,
        recipe,
        rechecker(backing, kappa, weights),
        LocalExecutor(1),
        silent,
    )
    return verdict(claimed, Report(outcome.result, recipe=recipe.to_dict()), backing)


def _network(model: Any, recipe: Recipe) -> OnnxNetwork:
    return OnnxNetwork(
        model, targets=recipe.targets, ignore=recipe.ignore, positions=recipe.positions, seed=recipe.seed
    )


def _parsed(content: bytes, path: Path) -> Any:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:
        raise ModelError(should("directory", "one with readable ONNX files", repr(str(path)))) from error
    return model


def _matched(network: OnnxNetwork, trimmed: OnnxNetwork, names: set[str]) -> dict[str, Layer]:
    """The trimmed file's layers by the names they have in the original."""
    before, after = network.layers, trimmed.layers
    if {layer.name for layer in before} != names:
        raise ModelError(should(ORIGINAL, "the model that was trimmed", "one with other layers"))
    if [layer.weight.shape for layer in before] != [layer.weight.shape for layer in after]:
        raise ModelError(should(MODEL, f"{ORIGINAL} with other weights", "one with other layers"))
    return {old.name: new for old, new in zip(before, after, strict=True)}


def _index(directory: Path) -> dict[str, Any]:
    try:
        index = json.loads((directory / saving.INDEX).read_text(encoding="utf-8"))
        version, names = index["format"], set(index["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(should("DIR", f"a directory with a readable {saving.INDEX}", repr(str(directory)))) from error
    if version != saving.FORMAT or names != _FILES:
        got = f"format {version!r} with {len(names)} files"
        raise InputError(should("DIR", "a directory that this version of nettrim trim wrote", got))
    return index


def _proved(
    directory: Path, index: Mapping[str, Any], files: Mapping[str, bytes]
) -> tuple[Recipe, dict[str, tuple[Backing, ...]], dict[str, float], Mapping[str, Any]]:
    """Recipe, backing and kappa by layer, and the report as it was saved."""
    try:
        proofs: dict[str, Tensor] = load_tensors(files[saving.PROOFS])
        recipe = saving.recipe_with_arrays(files[saving.RECIPE].decode(), proofs)
        backing, kappa = saving.backing_of(index, proofs)
        return recipe, backing, kappa, json.loads(files[saving.REPORT])
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(should("DIR", "one that nettrim trim wrote", f"{str(directory)!r} ({error!r})")) from error
