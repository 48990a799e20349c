"""A trimmed ONNX file on disk, in the same directory as a module's trim, with the original beside it.

model.onnx     the trimmed file        original.onnx  the file before, which `nettrim.verify` starts from
The other files are those of `nettrim.saving`.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from nettrim.errors import ModelError, should
from nettrim.layerwise import LayerOutcome
from nettrim.models.onnx_import import onnx, onnxruntime
from nettrim.models.onnx_network import OnnxNetwork
from nettrim.recipe import Recipe
from nettrim.report import Report
from nettrim.samples import Samples
from nettrim.saving import (
    INDEX,
    ONNX_MODEL,
    ONNX_ORIGINAL,
    PROOFS,
    RECIPE,
    REPORT,
    Claims,
    index_of,
    json_bytes,
    new_directory,
    proofs_of,
    read_claims,
    read_files,
)
from nettrim.version import __version__


@dataclass(frozen=True, eq=False)
class SavedOnnx:
    """What goes into a directory."""

    network: OnnxNetwork
    original: Any  # ModelProto
    report: Report
    recipe: Recipe
    layers: tuple[LayerOutcome, ...]
    samples: Samples


@dataclass(frozen=True, eq=False)
class LoadedOnnx:
    """What a directory holds, its hashes checked; both models are ModelProtos."""

    original: Any
    model: Any
    claims: Claims


def save_onnx_trim(trim: SavedOnnx, directory: Path) -> Path:
    """Write a trim; the model's predictions are compared with the network's before anything is in place."""
    proofs, layers = proofs_of(trim)
    versions = {
        "nettrim": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    files = {
        ONNX_ORIGINAL: trim.original.SerializeToString(),
        PROOFS: save_tensors(proofs),
        REPORT: json_bytes(trim.report.to_dict()),
        RECIPE: trim.recipe.to_toml().encode(),
    }
    with new_directory(directory) as temporary:
        trim.network.save(temporary / ONNX_MODEL, trim.samples.calibration[:1])
        written = {**files, ONNX_MODEL: (temporary / ONNX_MODEL).read_bytes()}
        files[INDEX] = json_bytes(index_of(trim.samples, layers, written, versions))
        for name, content in files.items():
            (temporary / name).write_bytes(content)
    return directory


def read_onnx_trim(directory: Path) -> LoadedOnnx:
    """Read a directory, checking every hash. Raises InputError, and ModelError for ONNX files that cannot be parsed."""
    index, contents = read_files(directory, {ONNX_MODEL, ONNX_ORIGINAL, PROOFS, REPORT, RECIPE})
    claims = read_claims(directory, index, contents)
    original, model = (_parsed(contents[name], directory / name) for name in (ONNX_ORIGINAL, ONNX_MODEL))
    return LoadedOnnx(original, model, claims)


def _parsed(content: bytes, path: Path) -> Any:
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:
        raise ModelError(should("directory", "one with readable ONNX files", repr(str(path)))) from error
