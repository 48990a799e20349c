"""What the layers of an ONNX network see and answer, from values that ONNX Runtime computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nettrim.errors import ModelError, should
from nettrim.models.base import Layer, LayerSamples
from nettrim.models.capture import Positions, with_room
from nettrim.models.onnx_run import Chunk
from nettrim.models.onnx_sites import Site
from nettrim.models.operations import Geometry
from nettrim.models.store import SampleStore, Writer
from nettrim.models.unfold import patches, responses_at, rows_per_sample

_PROOF_ROWS = 256


def values_of(site: Site) -> tuple[str, ...]:
    """The values of the graph that a site's samples are made of."""
    return (site.source, site.preactivation, *(name for name, _ in site.offsets))


class Collector:
    """Collects the samples of some sites chunk by chunk, proving on the first one that they fit the weights."""

    def __init__(
        self, sites: Sequence[Site], layers: Sequence[Layer], positions: Positions, store: SampleStore
    ) -> None:
        self._positions = positions
        self._sites = [_Samples(site, layer, store) for site, layer in zip(sites, layers, strict=True)]

    def start(self, batch: int) -> None:
        """Begin the batch with this number."""
        self._positions.start(batch)

    def add(self, values: dict[str, np.ndarray], chunk: Chunk) -> None:
        """Take the samples of one chunk."""
        for samples in self._sites:
            samples.add(values, chunk, self._positions)

    def samples(self) -> dict[str, LayerSamples]:
        """All samples collected, by layer name."""
        return {samples.site.name: samples.finish() for samples in self._sites}


class _Samples:
    """The growing tensors of one site."""

    def __init__(self, site: Site, layer: Layer, store: SampleStore) -> None:
        self.site, self._layer, self._proven = site, layer, False
        self._inputs = store.writer(f"{site.name}.inputs")
        self._preactivations = store.writer(f"{site.name}.preactivations")
        self._offset: Writer | None = store.writer(f"{site.name}.offset") if site.offsets else None

    def add(self, values: dict[str, np.ndarray], chunk: Chunk, positions: Positions) -> None:
        site = self.site
        geometry = site.convolution.geometry if site.convolution is not None else Geometry("Linear")
        source, answer = values[site.source], values[site.preactivation]
        precision = max(_eps(source), _eps(answer))
        seen = _features_last(source, site.flipped)
        received = _features_last(answer, site.side == "left" and site.convolution is None)
        offset = None
        if site.offsets:
            total = sum(np.asarray(values[name], dtype=np.float64) * factor for name, factor in site.offsets)
            try:
                spread = np.broadcast_to(total, answer.shape)
            except ValueError:
                raise self._unfaithful("its sum before the activation has another shape") from None
            offset = _features_last(spread, site.side == "left" and site.convolution is None)
        seen, received, offset = (
            None if a is None else _tensor(chunk.trim(a), answer.dtype) for a in (seen, received, offset)
        )
        assert seen is not None and received is not None
        kernel: tuple[int, ...] = ()
        if site.convolution is None and seen.shape[:-1] != received.shape[:-1]:
            if seen[..., 0].numel() * received.shape[-1] != received.numel():
                raise self._unfaithful("it is reshaped to other features")
            seen = seen.reshape(*received.shape[:-1], seen.shape[-1])  # the same rows, reshaped behind the product
        if site.convolution is not None:
            seen, kernel = site.convolution.padded(seen), site.convolution.kernel
        samples, count = rows_per_sample(seen, received, geometry)
        chosen = positions.draw(site.name, 0, samples, count)
        inputs = patches(seen, kernel, geometry, chosen)
        preactivations = responses_at(received, geometry, chosen)
        offset = None if offset is None else responses_at(offset, geometry, chosen)
        if not bool(torch.isfinite(preactivations).all() and torch.isfinite(inputs).all()):
            raise ModelError(should("model", "finite on the data", f"NaN or infinity at layer {site.name!r}"))
        if not self._proven:
            self._prove(inputs, preactivations, offset, precision)
            self._proven = True
        inputs = with_room(inputs) if self._layer.bias is not None else inputs
        self._inputs.append(inputs.transpose(0, 1).contiguous())
        self._preactivations.append(preactivations.contiguous())
        if self._offset is not None and offset is not None:
            self._offset.append(offset.contiguous())

    def finish(self) -> LayerSamples:
        offset = None if self._offset is None else self._offset.finish()
        inputs = self._inputs.finish().transpose(0, 1)
        inputs = inputs[..., :-1] if self._layer.bias is not None else inputs
        return LayerSamples(inputs, self._preactivations.finish(), offset)

    def _prove(self, inputs: Tensor, preactivations: Tensor, offset: Tensor | None, precision: float) -> None:
        """weight @ inputs + bias + offset is what the activation received, to rounding."""
        layer, rows = self._layer, slice(0, _PROOF_ROWS)
        weight = layer.weight.double().reshape(layer.groups, -1, layer.weight.shape[1])
        seen = inputs[:, rows].double()
        if seen.shape[2] != weight.shape[2] or inputs.shape[1] != len(preactivations):
            raise self._unfaithful("its inputs do not have the weight's shape")
        made = torch.einsum("gsi,goi->sgo", seen, weight).flatten(1)
        scale = torch.einsum("gsi,goi->sgo", seen.abs(), weight.abs()).flatten(1).max()
        for extra in (layer.bias, None if offset is None else offset[rows]):
            if extra is not None:
                made = made + extra.double()
                scale = scale + extra.abs().max()
        error = (made - preactivations[rows].double()).abs().max()
        if not bool(error <= 64 * precision * scale + 1e-30):
            raise self._unfaithful(f"they differ by {float(error):.2g}")

    def _unfaithful(self, what: str) -> ModelError:
        return ModelError(
            should(
                "model",
                "one whose responses follow from its weights",
                f"layer {self.site.name!r}, where they could not be reproduced: {what}",
                f"Leave it out with ignore={[self.site.name]!r}.",
            )
        )


def _features_last(array: np.ndarray, swapped: bool) -> np.ndarray:
    return np.swapaxes(array, -1, -2) if swapped and array.ndim > 1 else array


def _eps(array: np.ndarray) -> float:
    return float(np.finfo(array.dtype).eps) if array.dtype.kind == "f" else 1e-2


def _tensor(array: np.ndarray, like: np.dtype) -> Tensor:
    """float64 stays; everything else becomes float32."""
    dtype = np.float64 if like == np.float64 else np.float32
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))
