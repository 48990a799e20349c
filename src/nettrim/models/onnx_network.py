"""An ONNX file as a network of layers that can be trimmed."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nettrim.certificates.graph import Flow
from nettrim.errors import DataError, InputError, ModelError, near, should
from nettrim.models.base import Layer, LayerSamples, Skipped
from nettrim.models.batches import Batch, normalise_batches
from nettrim.models.capture import Positions
from nettrim.models.onnx_capture import Collector, values_of
from nettrim.models.onnx_constants import Shapes
from nettrim.models.onnx_edit import Editor, write_tensor
from nettrim.models.onnx_file import operations_digest, read_model
from nettrim.models.onnx_flow import flow_of, measured_shapes
from nettrim.models.onnx_graph import FLOATS, Graph, main_output, to_array
from nettrim.models.onnx_import import onnx
from nettrim.models.onnx_layers import chain_with, match, plain_chain
from nettrim.models.onnx_products import Product, find_products
from nettrim.models.onnx_run import Part, as_batch, chunks
from nettrim.models.onnx_sites import Site, add_bias, prepare, widened
from nettrim.models.onnx_write import clean, write_model
from nettrim.models.selection import Candidate, select
from nettrim.models.store import Memory, SampleStore
from nettrim.models.unfold import matrix_of, weight_of

_NARROW = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_SAMPLES = 11  # made up to see shapes: a number that no axis has by chance
_AGREEMENT = 1e-5  # relative, between a saved file's predictions and the network's


class OnnxNetwork:
    """Any ONNX model with Gemm, MatMul, Conv or ConvTranspose nodes; ONNX Runtime computes the activations.

    Works on a private copy in which every layer has a weight of its own and BatchNormalization is folded.
    `targets` and `ignore` take names of layers or weights, glob patterns, "re:" regular expressions and
    operator names (also "Linear", "Conv2d"). `positions` is the greatest number of positions taken from one
    sample, `memory_budget` the bytes of samples kept in memory, `threads` ONNX Runtime's (0: its choice).
    `notes` says what was changed in the structure. Raises ModelError for a file that is not a sound ONNX
    model or has nothing to trim, InputError for an unknown target.
    """

    def __init__(
        self,
        path_or_modelproto: str | os.PathLike[str] | onnx.ModelProto,
        *,
        targets: str | Iterable[str] | None = None,
        ignore: str | Iterable[str] = (),
        positions: int | None = None,
        seed: int = 0,
        allow_external_data: bool = False,
        memory_budget: int | None = None,
        threads: int = 0,
    ) -> None:
        if positions is not None and positions < 1:
            raise InputError(should("positions", "at least 1", positions))
        self.positions, self.seed, self.memory_budget, self.threads = positions, seed, memory_budget, threads
        self._probe: Batch | None = None
        self.model: Any = read_model(path_or_modelproto, allow_external_data=allow_external_data)
        original = Graph(self.model)
        self._inputs, self._output = original.inputs, main_output(self.model)
        self._whole: Part | None = Part(self.model, [self._output], threads=threads)
        probe, before = self._probed()
        editor = Editor(self.model)
        products, skipped = find_products(editor.graph)
        chosen = select([_candidate(product) for product in products], targets, ignore)
        partial = not skipped and not all(chosen)
        untouched = _copied(self.model) if partial else None
        for product, yes in zip(products, chosen, strict=True):
            _check_finite(product.name, product.constant.array)
            if not yes:
                skipped.append(_untargeted(product))
        notes = widened(editor.graph, [product for product, yes in zip(products, chosen, strict=True) if yes])
        sites = [prepare(editor, p, notes) for p, yes in zip(products, chosen, strict=True) if yes]
        if not sites:
            reasons = "; ".join(f"{record.name}: {record.reason}" for record in skipped) or "it has no weights"
            raise ModelError(
                should("model", "a network with a Gemm, MatMul or Conv layer to trim", f"none ({reasons})")
            )
        ranks = editor.graph.ranks
        editor.finish()
        graph = Graph(self.model, ranks=ranks)
        self.notes = tuple(notes)
        self._skipped = tuple(skipped)
        self._sites = {site.name: site for site in match(graph, sites)}
        self._sampled = positions is not None and any(ranks.get(site.source, 3) > 2 for site in sites)
        self._chain = None if skipped or self._sampled else plain_chain(graph, list(self._sites.values()))
        if untouched is not None and before is not None and not self._sampled:
            self._chain, self._skipped = chain_with(self._skipped, OnnxNetwork(untouched, threads=threads))
        self._whole = None
        self._stores, self._memory = list[SampleStore](), Memory(memory_budget)
        self.operations = operations_digest(self.model)
        self._index()
        for site in self._sites.values():
            if site.bias is not None:
                _check_finite(site.name, self._array(site.bias))
        if before is not None and not _close(self.outputs([probe]), before):
            raise ModelError(
                should("model", "one that can be prepared for trimming", "one whose outputs changed by it")
            )
        self._probe = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Trimmable layers in order of execution, weights in float32 (float64 where the file has it)."""
        return tuple(self._layer(site) for site in self._sites.values())

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Nodes with weights that are left as they are, each with its reason."""
        return self._skipped

    @property
    def chain(self) -> tuple[str, ...] | None:
        """Layer names when the network is a plain chain of products, else None; skipped ones were no targets."""
        return self._chain

    @property
    def input_names(self) -> tuple[str, ...]:
        """The graph's inputs, in order: the names that batches given as dictionaries use."""
        return tuple(value.name for value in self._inputs)

    @property
    def flow(self) -> Flow | str:
        """How an error travels from the layers to the main output, or why no bound can follow it."""
        if self._sampled:
            return "only some positions of each sample were used, so the layers' distances cover a part"
        graph, sites = Graph(self.model, ranks={}), tuple(self._sites.values())
        shapes = Shapes(lambda: measured_shapes(self.model, graph, sites, self._made_up(_SAMPLES)))
        return flow_of(graph, sites, self._output, shapes)

    def plan(self) -> dict[str, Any]:
        """Empty: a written file holds its own structure."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Every stored tensor of numbers by its name."""
        arrays = ((tensor.name, to_array(tensor)) for tensor in self.model.graph.initializer)
        return {
            name: torch.from_numpy(array.copy()) if array.dtype.kind in "iu" else _plain(array)
            for name, array in arrays
            if array is not None and array.dtype.kind in "iufV"
        }

    def written(self) -> Any:
        """The model with its present weights as `save` writes it, a ModelProto."""
        return clean(self.model)

    def new_store(self) -> SampleStore:
        """An empty store for samples, within the memory budget; its files go with `close`."""
        self._stores.append(SampleStore(self._memory))
        return self._stores[-1]

    def capture(self, batches: Sequence[object], names: Sequence[str], first: int = 0) -> dict[str, LayerSamples]:
        """Samples of the named layers with the present weights, in the order of the batches.

        `first` is the number of the first batch, where these are some of several: it chooses positions.

        `inputs` (groups, samples, in), `preactivations` and `offset` (samples, out). Only the part of the
        model that the layers need is run. Raises DataError for batches that the model cannot take, ModelError
        when a layer's answers cannot be reproduced from its weight.
        """
        sites = [self._find(name) for name in dict.fromkeys(names)]
        store = self.new_store()
        collector = Collector(sites, [self._layer(site) for site in sites], Positions(self.positions, self.seed), store)
        part = Part(self.model, [value for site in sites for value in values_of(site)], threads=self.threads)
        for number, batch in enumerate(self._normalised(batches), first):
            collector.start(number)
            for chunk in chunks(self._inputs, batch):
                collector.add(part.run(chunk), chunk)
        return collector.samples()

    def outputs(self, batches: Sequence[object]) -> Tensor:
        """The first floating output on all batches, (samples, ...)."""
        if self._whole is None:
            self._whole = Part(self.model, [self._output], threads=self.threads)
        return self._predict(self._whole, self._normalised(batches))

    def update(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        """Replace a layer's weight (out, in), and its bias unless None, in place, cast to the file's precision."""
        site = self._find(name)
        stored = self._array(site.weight)
        shape = tuple(self._matrix(site).shape)
        if tuple(weight.shape) != shape:
            raise InputError(should("weight", f"of shape {shape} for layer {name!r}", tuple(weight.shape)))
        if bias is not None and tuple(bias.shape) != shape[:1]:
            raise InputError(should("bias", f"of shape {shape[:1]} for layer {name!r}", tuple(bias.shape)))
        matrix = weight.detach().cpu()
        if site.convolution is not None:
            array = weight_of(matrix, stored.shape, site.convolution.geometry).numpy()
        else:
            array = (matrix.T if site.transposed else matrix).numpy()
        self._store(name, site.weight, array, stored.dtype)
        if bias is not None and site.bias is None:
            self._gain_bias(site, bias.detach().cpu().numpy().astype(stored.dtype))
        elif bias is not None and site.bias is not None:
            old = self._array(site.bias)
            self._store(name, site.bias, bias.detach().cpu().numpy().reshape(old.shape), old.dtype)
        self._whole = None

    def copy(self) -> OnnxNetwork:
        """An independent copy."""
        twin = copy.copy(self)
        twin.model = _copied(self.model)
        twin._sites, twin._stores, twin._whole = dict(self._sites), [], None
        twin._index()
        return twin

    def save(self, path: str | os.PathLike[str], batches: Sequence[object] | None = None) -> None:
        """Write the model with its present weights as one self-contained file, or nothing.

        The written file is checked and its predictions on `batches` (or on the first samples the network has
        seen, or on noise) are compared with the network's. Raises ModelError when they differ.
        """
        wanted = self._normalised(batches) if batches is not None else [self._probe or self._made_up()]
        expected = self.outputs(wanted)

        def agrees(model: Any) -> None:
            found = self._predict(Part(model, [self._output], threads=self.threads), wanted)
            scale = expected.abs().max().clamp(min=1e-30) if expected.numel() else torch.ones(())
            same = torch.equal(found.isnan(), expected.isnan()) and found.shape == expected.shape
            if not same or bool((found - expected).nan_to_num().abs().max() > _AGREEMENT * scale):
                raise ModelError(should("path", "a file that predicts what the network does", "different outputs"))

        write_model(self.model, path, agrees)

    def close(self) -> None:
        """Remove the files that captures under a memory budget have written."""
        for store in self._stores:
            store.close()
        self._stores = []

    def _find(self, name: str) -> Site:
        if name not in self._sites:
            raise InputError(should("name", "the name of a trimmable layer", repr(name), near(name, self._sites)))
        return self._sites[name]

    def _layer(self, site: Site) -> Layer:
        bias = None if site.bias is None else _plain(self._array(site.bias)).reshape(-1)
        groups = site.convolution.groups if site.convolution is not None else 1
        dtype = _NARROW.get(self._array(site.weight).dtype.name)
        return Layer(site.name, site.kind, site.shape, site.activation, self._matrix(site), bias, groups, dtype)

    def _matrix(self, site: Site) -> Tensor:
        weight = _plain(self._array(site.weight))
        if site.convolution is not None:
            return matrix_of(weight, site.convolution.geometry).contiguous()
        return (weight.T if site.transposed else weight).contiguous()

    def _index(self) -> None:
        self._tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def _array(self, name: str) -> np.ndarray:
        array = to_array(self._tensors[name])
        assert array is not None
        return array

    def _store(self, layer: str, name: str, array: np.ndarray, dtype: np.dtype) -> None:
        with np.errstate(over="ignore"):
            cast = array.astype(dtype)
        _check_finite(layer, cast)
        write_tensor(self.model, name, cast, self._tensors)

    def _gain_bias(self, site: Site, bias: np.ndarray) -> None:
        _check_finite(site.name, bias)
        self._sites[site.name] = add_bias(Editor(self.model), site, bias)
        self._index()

    def _normalised(self, batches: Any) -> list[Batch]:
        """Any form of calibration data as batches; the first samples are kept for the comparison in `save`."""
        if isinstance(batches, Tensor | np.ndarray | Mapping | Batch):
            found = normalise_batches(batches)
        else:
            items = [as_batch(item, len(self._inputs)) for item in batches]
            found = normalise_batches(items) if items else []
        if not found:
            raise DataError(should("data", "at least one batch", "none"))
        if self._probe is None:
            self._probe = found[0].rows(0, 8)
        return found

    def _predict(self, part: Part, batches: Sequence[Batch]) -> Tensor:
        found: list[Tensor] = []
        for batch in batches:
            for chunk in chunks(self._inputs, batch):
                found.append(_plain(chunk.trim(np.asarray(part.run(chunk)[self._output]))))
        return torch.cat(found) if found[0].dim() else torch.stack(found)

    def _made_up(self, samples: int = 1) -> Batch:
        """Samples of the declared shapes, noise for floating inputs and zeros for others; free sizes are `samples`."""
        arrays = []
        generator = np.random.default_rng(self.seed)
        for value in self._inputs:
            kind = value.type.tensor_type
            shape = [d.dim_value if d.dim_value > 0 else samples for d in kind.shape.dim]
            noise = generator.standard_normal(shape) if kind.elem_type in FLOATS else np.zeros(shape)
            arrays.append(torch.from_numpy(noise.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))))
        return Batch(tuple(arrays), {}, None, len(arrays[0]) if arrays and arrays[0].dim() else samples)

    def _probed(self) -> tuple[Batch | None, Tensor | None]:
        """The unchanged model's outputs on made-up inputs, None where it cannot take them or answers by chance."""
        try:
            probe = self._made_up()
            before = self.outputs([probe])
            same = torch.equal(before, self.outputs([probe]))
        except (DataError, TypeError, ValueError, MemoryError):
            return None, None
        return probe, before if same else None


def _candidate(product: Product) -> Candidate:
    dims = product.constant.array.ndim - 2
    alias = f"{product.kind}{dims}d" if product.kind.startswith("Conv") else "Linear"
    return Candidate(tuple(dict.fromkeys((product.name, product.constant.stored))), (product.kind, alias))


def _untargeted(product: Product) -> Skipped:
    weight = product.constant.array
    return Skipped(product.name, product.kind, tuple(weight.shape), "not in targets", int(np.count_nonzero(weight)))


def _copied(model: Any) -> Any:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding, generously: what it has to find is a wrong structure."""
    scale = other.nan_to_num().abs().max() if other.numel() else 0.0
    return one.shape == other.shape and bool(
        torch.isclose(one, other, rtol=0, atol=1e-2 * float(scale) + 1e-30, equal_nan=True).all()
    )


def _check_finite(name: str, array: np.ndarray) -> None:
    if not bool(np.isfinite(array.astype(np.float32) if array.dtype.kind == "V" else array).all()):
        raise ModelError(should("model", "a network with finite weights", f"NaN or infinity at layer {name!r}"))


def _plain(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64 if array.dtype == np.float64 else np.float32))
