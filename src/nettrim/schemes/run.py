"""A whole network by the scheme of each of its layers."""

from __future__ import annotations

from collections.abc import Sequence

from nettrim.blocks import Blocks
from nettrim.blocks import Trimmer as Trimmer
from nettrim.checkpoint import Checkpoint
from nettrim.executors.base import Executor
from nettrim.layerwise import LayerOutcome
from nettrim.models.base import Network
from nettrim.recipe import Recipe
from nettrim.results import Event, LayerResult, Listener
from nettrim.schemes.cascade import trim_cascade
from nettrim.schemes.parallel import trim_parallel


def run_schemes(
    network: Network,
    original: Network,
    batches: Sequence[object],
    recipe: Recipe,
    work: Trimmer,
    executor: Executor,
    listener: Listener,
    store: Checkpoint | None = None,
) -> tuple[LayerOutcome, ...]:
    """Trim `network` in place and return the outcomes in order of execution; `original` is only read.

    Layers of the parallel scheme go first, through the executor. Those of the cascade follow in order of
    execution, so that each sees everything above it already trimmed, by whichever scheme (A section 6
    allows such mixtures; docs/bounds.md has their bound). `work` makes an outcome of a task; what is finished is
    kept in `store` and not done again.
    """
    blocks = Blocks(work, executor, recipe, store)
    names = [layer.name for layer in original.layers]
    first = [name for name in names if recipe.scheme_of(name) == "parallel"]
    then = [name for name in names if recipe.scheme_of(name) == "cascade"]
    outcomes: dict[str, LayerOutcome] = {}

    def finished(outcome: LayerOutcome) -> None:
        outcomes[outcome.result.name] = outcome
        _tell(listener, "layer", len(outcomes), len(names), outcome.result)

    _tell(listener, "start", 0, len(names))
    for outcome in trim_parallel(original, batches, first, blocks):
        finished(outcome)
    for name in first:
        network.update(name, outcomes[name].weight, outcomes[name].bias)
    for outcome in trim_cascade(network, original, batches, then, blocks, dict(outcomes)):
        finished(outcome)
    _tell(listener, "done", len(outcomes), len(names))
    return tuple(outcomes[name] for name in names)


def _tell(listener: Listener, kind: str, finished: int, total: int, layer: LayerResult | None = None) -> None:
    listener(Event(kind, finished, total, layer))
