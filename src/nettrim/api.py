"""From a trained model and calibration data to a trimmed model and a report."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import nn

from nettrim.blocks import LayerWork
from nettrim.blocks.identity import identity
from nettrim.checkpoint import Checkpoint
from nettrim.errors import InputError, ModelError, RecipeError, is_whole, should
from nettrim.executors.base import Executor
from nettrim.executors.shard import Shard
from nettrim.layerwise import LayerOutcome, check_device
from nettrim.models.batches import Batch
from nettrim.models.shrink import Shrunk, shrink
from nettrim.models.state import model_digest
from nettrim.models.torch_network import TorchNetwork
from nettrim.programs.penalties import Penalty
from nettrim.progress import progress_listener
from nettrim.recipe import Recipe
from nettrim.report import Report
from nettrim.results import Listener
from nettrim.samples import Samples, split_samples
from nettrim.saving import SavedTrim, save_trim
from nettrim.schemes.automatic import running
from nettrim.schemes.whole import trim_network

if TYPE_CHECKING:
    from onnx import ModelProto

    from nettrim.models.onnx_network import OnnxNetwork
    from nettrim.models.onnx_shrink import ShrunkOnnx


_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, eq=False, repr=False)
class Trimmed:
    """A trimmed model and everything that was measured of it; printed, its report."""

    model: Any  # a pruned copy: a module with the caller's training flags, or of an ONNX file a ModelProto
    report: Report
    recipe: Recipe
    layers: tuple[LayerOutcome, ...]  # the new weights of each trimmed layer, and what backs its certificate
    plan: Mapping[str, Any]  # changes of structure (BatchNorm folded away), to be replayed when loading
    samples: Samples
    digest: str  # of the model that was trimmed, by which `nettrim.verify` knows it

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.report.headline}>"

    def __str__(self) -> str:
        return str(self.report)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write model.safetensors, report.json, recipe.toml and what `nettrim.verify` needs; no pickle.

        The directory appears whole or not at all. One written by an earlier `save` is replaced; any other that is
        not empty is refused. Raises InputError when it cannot be written.
        """
        trim = SavedTrim(self.model, self.report, self.recipe, self.layers, self.plan, self.samples, self.digest)
        return save_trim(trim, Path(directory))

    def shrink(self) -> Shrunk | ShrunkOnnx:
        """A smaller dense model that computes the same function: dead and constant units and unused inputs cut out."""
        return shrink(self.model, self._few())

    def _few(self) -> Batch:
        return self.samples.calibration[0].rows(0, 4)


@dataclass(frozen=True, eq=False, repr=False)
class TrimmedOnnx(Trimmed):
    """A trimmed ONNX file: `model` is a checked ModelProto, to be written with `save` or `onnx.save`."""

    network: OnnxNetwork
    original: Any  # the ModelProto before, with all its tensors inside

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write model.onnx, original.onnx, report.json, recipe.toml and what `nettrim.verify` needs.

        As `Trimmed.save`; besides, the written file is checked and its predictions are compared with the network's.
        """
        from nettrim.onnx_saving import SavedOnnx, save_onnx_trim  # noqa: PLC0415  # an extra

        trim = SavedOnnx(self.network, self.original, self.report, self.recipe, self.layers, self.samples)
        return save_onnx_trim(trim, Path(directory))

    def shrink(self) -> ShrunkOnnx:
        """A smaller dense ONNX model that computes the same function."""
        from nettrim.models.onnx_shrink import shrink_onnx  # noqa: PLC0415  # an extra

        return shrink_onnx(self.model, self._few())


def _told(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Tell `function`, by its keyword `_given`, which arguments a call names: a default that is named is a choice."""
    signature = inspect.signature(function)
    shown = signature.replace(parameters=[entry for name, entry in signature.parameters.items() if name != "_given"])

    @functools.wraps(function)
    def told(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        kwargs["_given"] = frozenset(kwargs)
        return function(*args, **kwargs)

    told.__signature__ = shown  # type: ignore[attr-defined]  # what help() shows
    return told


@_told
def trim(
    model: nn.Module | str | os.PathLike[str] | ModelProto,
    data: Any,
    *,
    epsilon: float | Mapping[str, float] | None = None,
    relative: bool = True,
    scheme: str | Mapping[str, str] = "parallel",
    gamma: float | Mapping[str, float] = 1.1,
    kappa: float = 1.0,
    budget: str | int = "layer",
    penalty: Penalty | Mapping[str, Penalty] | None = None,
    penalize_bias: bool = False,
    constraint: str = "distance",
    slack: str = "published",
    refit: bool = True,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] = (),
    batchnorm: str = "fold",
    positions: int | None = None,
    num_calibration_samples: int | None = None,
    holdout: Any = None,
    tolerance: float = 1e-4,
    executor: Executor | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
    seed: int = 0,
    progress: bool | Listener = True,
    recipe: Recipe | None = None,
    _given: frozenset[str] = frozenset(),
) -> Trimmed:
    """Trim a trained network: sparse weights, of least l1 norm, whose responses stay within a tolerance.

    model: a torch.nn.Module, the path of an .onnx file or a loaded ModelProto; it is not changed. data: a tensor
    (samples, ...) or an iterable of batches; of a model with several inputs tuples or dicts of them.
    epsilon: tolerance of each layer, relative to the norm of its responses (absolute with relative=False).
    batchnorm: "fold" each into the layer before it, which is then trimmed with it; "reestimate": keep them, and
    recompute their running statistics on the calibration data through the trimmed network.
    num_calibration_samples: calibrate on so many samples: of data given whole (a tensor, a Dataset) a choice drawn
    with `seed`, the first ones of any other iterable. positions: of each sample, at most so many positions of a
    convolution or tokens, drawn with `seed`.
    holdout: None (a tenth of the data from 50 samples on), a fraction, or data of its own; measured on only.
    executor: where layers and blocks of neurons are solved; None: processes, threads or one thread of this machine,
    whichever the work and what is installed call for (docs/scale.md).
    checkpoint: a directory for finished work, where an interrupted trim of the same model, data and recipe goes on.
    device: where the network's copy runs, programs are solved, and the trimmed network stays; None: where the model is.
    memory_budget: bytes that the samples of a layer and a solver's working arrays may take, beside the model, the data
    and what a layer answers; samples beyond half of it go to files. None: all samples in memory, and a solver's arrays
    take 1 GiB or, on a CUDA device, half of what is free there.
    progress: True shows it on a terminal's standard error, False nothing, a function receives `Event`s.
    recipe: all options as one value; keyword options that are given, if only at their defaults, override it.
    The other options are those of `nettrim.Recipe`. N Algorithms 1 and 2.

    Raises RecipeError for an option, DataError for the data, ModelError for the model, each in one sentence.
    """
    options = {
        "epsilon": epsilon,
        "relative": relative,
        "scheme": scheme,
        "gamma": gamma,
        "kappa": kappa,
        "budget": budget,
        "penalty": penalty,
        "penalize_bias": penalize_bias,
        "constraint": constraint,
        "slack": slack,
        "refit": refit,
        "targets": targets,
        "ignore": ignore,
        "batchnorm": batchnorm,
        "positions": positions,
        "num_calibration_samples": num_calibration_samples,
        "holdout": holdout if isinstance(holdout, int | float) else None,
        "tolerance": tolerance,
        "seed": seed,
    }
    recipe = _recipe(recipe, {name: value for name, value in options.items() if name in _given})
    check_device(device)
    if not (executor is None or hasattr(type(executor), "share")):
        cure = "Make one of nettrim.executors, such as Processes(4)."
        raise InputError(should("executor", "an executor", repr(executor), cure))
    if not (memory_budget is None or is_whole(memory_budget, 1)):
        raise InputError(should("memory_budget", "None or a number of bytes >= 1", repr(memory_budget)))
    if checkpoint is None and isinstance(executor, Shard):
        cure = "Give a directory that all shares can write to."
        raise InputError(should("checkpoint", "given for a share", "None", cure))
    source = open_source(model)
    samples = read_samples(source, data, recipe.holdout if holdout is None else holdout, recipe)
    digest = model_digest(source) if isinstance(source, nn.Module) else ""
    network = build_network(source, samples, recipe, device, None if memory_budget is None else memory_budget // 2)
    store = None
    if checkpoint is not None:
        about = identity(network, samples.calibration, samples.identity(cut=recipe.positions is not None), recipe)
        store = Checkpoint.open(checkpoint, about)
    alone = memory_budget is not None
    try:
        with (
            progress_listener(progress) as listener,
            running(executor, network.layers, recipe, samples.count, alone=alone, device=device) as chosen,
        ):
            outcome = trim_network(
                network,
                samples.calibration,
                samples.heldout,
                recipe,
                LayerWork(device, memory_budget),
                chosen,
                listener,
                store,
            )
    finally:
        network.close()
    result = outcome.result
    remarks = _remarks(outcome.layers, recipe)
    notes = (*network.notes, *result.notes, *remarks, *([samples.note] if samples.note else []))
    report = Report(replace(result, notes=notes), recipe=recipe.to_dict())
    made = (report, recipe, outcome.layers, network.plan(), samples, digest)
    if isinstance(network, TorchNetwork):
        return Trimmed(network.written(), *made)
    return TrimmedOnnx(network.written(), *made, network, source)


def _remarks(layers: Iterable[LayerOutcome], recipe: Recipe) -> Iterator[str]:
    """What a user would not expect of a layer."""
    for layer in layers:
        name, before, after = layer.result.name, layer.result.nonzeros_before, layer.result.nonzeros_after
        if after > before:
            why = "it was sparse already, and the least l1 norm is not the fewest weights"
            yield f"{name}: {before} weights became {after}: {why}."
        if not layer.proved:
            why = f"are larger than certificate_megabytes = {recipe.certificate_megabytes:g}"
            yield f"{name}: its multipliers {why}, so they are not saved and nettrim verify cannot check its gap."


def open_source(model: object) -> Any:
    """The model itself when it is a module with weights, or a checked ModelProto with all its tensors inside.

    Raises ModelError for anything else.
    """
    if isinstance(model, nn.Module):
        for name, parameter in model.named_parameters():
            if parameter.is_meta:
                cure = "Load its weights first."
                raise ModelError(should("model", "one with weights", f"{name!r} on the meta device", cure))
        return model
    if isinstance(model, str | os.PathLike):
        suffix = Path(model).suffix.lower()
        if suffix != ".onnx":
            cure = "Build the module and load its weights into it, or export it to ONNX."
            raise ModelError(should("model", "a torch.nn.Module or the path of an .onnx file", repr(str(model)), cure))
    elif type(model).__name__ != "ModelProto":
        be = "a torch.nn.Module, the path of an .onnx file or an onnx.ModelProto"
        raise ModelError(should("model", be, f"a {type(model).__name__}"))
    from nettrim.models.onnx_file import read_model  # noqa: PLC0415  # an extra

    return read_model(model, allowing="load it with onnx.load and give the loaded model")  # type: ignore[arg-type]


def read_samples(source: Any, data: Any, holdout: Any, recipe: Recipe) -> Samples:
    """The data of a trim of what `open_source` returned."""
    limit = recipe.num_calibration_samples
    if isinstance(source, nn.Module):
        return split_samples(source, data, holdout, recipe.seed, limit=limit)
    from nettrim.models.onnx_graph import Graph  # noqa: PLC0415  # an extra

    return split_samples(None, data, holdout, recipe.seed, limit=limit, inputs=len(Graph(source).inputs))


def build_network(
    source: Any,
    samples: Samples,
    recipe: Recipe,
    device: str | torch.device | None = None,
    memory_budget: int | None = None,
) -> TorchNetwork | OnnxNetwork:
    """What `open_source` returned as layers that can be trimmed, as the recipe wants it."""
    if isinstance(source, nn.Module):
        return TorchNetwork(
            source,
            samples.calibration[0],
            targets=recipe.targets,
            ignore=recipe.ignore,
            positions=recipe.positions,
            seed=recipe.seed,
            device=device,
            memory_budget=memory_budget,
            statistics=samples.calibration if recipe.batchnorm == "reestimate" else None,
        )
    from nettrim.models.onnx_network import OnnxNetwork  # noqa: PLC0415  # an extra

    if recipe.batchnorm != "fold":
        cure = "Re-estimate in the framework that wrote the file."
        raise RecipeError(should("batchnorm", "'fold' for an ONNX file", repr(recipe.batchnorm), cure))
    return OnnxNetwork(
        source,
        targets=recipe.targets,
        ignore=recipe.ignore,
        positions=recipe.positions,
        seed=recipe.seed,
        memory_budget=memory_budget,
    )


def _recipe(recipe: Recipe | None, options: Mapping[str, Any]) -> Recipe:
    """The options given, over the recipe's where there is one; None leaves an option as it is."""
    if recipe is not None and not isinstance(recipe, Recipe):
        cure = "Read one with nettrim.Recipe.read(path)."
        raise RecipeError(should("recipe", "a nettrim.Recipe", f"a {type(recipe).__name__}", cure))
    given = {name: value for name, value in options.items() if value is not None}
    if recipe is not None:
        return recipe.replace(**given)
    if "epsilon" not in given:
        cure = "Give a tolerance such as epsilon=0.05, or a recipe."
        raise RecipeError(should("epsilon", "given", "None", cure))
    return Recipe(**given)
