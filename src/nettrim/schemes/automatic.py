"""Which executor fits a trim that was given none: one thread, threads, or processes.

Measured on two cores (docs/scale.md): the Newton steps are many small operations, so threads of one process wait for
its interpreter's lock and are slower than one thread until the operations are large; processes never are, but take some
seconds to start and the memory of an interpreter each.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from nettrim.blocks.split import cuts, plan
from nettrim.executors import Executor, LocalExecutor, Processes, Shard
from nettrim.executors.local import processors
from nettrim.models.base import Layer
from nettrim.recipe import Recipe

_NEURONS = 256  # fewer are done before processes have gained what their start costs
_ELEMENTS = 2e6  # of a layer's inputs: from there on two threads are faster than one
_POSITIONS = 1000  # taken for a convolution of which all positions are used


@contextmanager
def running(
    executor: Executor | None,
    layers: Sequence[Layer],
    recipe: Recipe,
    samples: int,
    *,
    alone: bool,
    device: str | torch.device | None = None,
) -> Iterator[Executor]:
    """The executor given; `fitting_executor`'s, until the end of the block, where none was, or a share without one."""
    shard = executor if isinstance(executor, Shard) and executor.free else None
    if executor is not None and shard is None:
        yield executor
        return
    shares = 1 if shard is None else shard.count
    with fitting_executor(layers, recipe, samples, shares=shares, alone=alone, device=device) as own:
        yield own if shard is None else shard.on(own)


def fitting_executor(
    layers: Sequence[Layer],
    recipe: Recipe,
    samples: int,
    *,
    shares: int = 1,
    alone: bool = False,
    device: str | torch.device | None = None,
) -> LocalExecutor | Processes:
    """An executor of this machine for a trim of `layers` on so many samples; answers do not depend on which.

    Processes from 256 neurons on, where loky is installed and the temporary folder has room for what they share; else
    threads where the layers are large, else one. Never more workers than blocks that can run at the same time.
    On a GPU, of `device` or the model's own, it is one thread. `shares`: into how many the blocks are dealt. `alone`:
    one thread, as each block in work takes the memory that a budget grants.
    """
    workers = min(processors(), -(-_at_once(layers, recipe) // shares))
    if alone:
        return LocalExecutor(1)
    places = {torch.device(device or "cpu").type, *(layer.weight.device.type for layer in layers)}
    if workers < 2 or places != {"cpu"}:
        return LocalExecutor(1)
    sizes = {layer.name: samples * _positions(layer, recipe) * layer.weight.shape[1] for layer in layers}
    neurons = sum(len(layer.weight) for layer in layers)
    room = shutil.disk_usage(tempfile.gettempdir()).free
    spawns = find_spec("loky") is not None and not multiprocessing.current_process().daemon
    shared = sum(sizes[layer.name] * layer.weight.element_size() for layer in layers)
    if neurons >= _NEURONS * shares and spawns and shared < room / 2:
        return Processes(workers)
    typical = sum(sizes[layer.name] * len(layer.weight) for layer in layers) / neurons
    return LocalExecutor(workers if typical >= _ELEMENTS else 1)


def _at_once(layers: Sequence[Layer], recipe: Recipe) -> int:
    """How many blocks can run at the same time: those of all parallel layers, or those of one of the cascade."""
    together, most = 0, 0
    for layer in layers:
        items = sum(len(cuts(layer, recipe, block)) for block in plan(layer, recipe))
        if recipe.scheme_of(layer.name) == "cascade":
            most = max(most, items)
        else:
            together += items
    return max(together, most)


def _positions(layer: Layer, recipe: Recipe) -> int:
    return recipe.positions or _POSITIONS if len(layer.shape) > 2 else 1
