"""Networks on the nested spirals, trained once and kept: shared by the experiments of A section 5.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nettrim.experiments.checkpoints import Cell, as_state, of_state
from nettrim.experiments.context import Context
from nettrim.experiments.pruning import count_weights
from nettrim.experiments.spiral import Spirals
from nettrim.experiments.training import Training, accuracy, mlp, seeded, start_as_h2o, train

PREFIX = "dense."


def trained(
    context: Context, data: Spirals, hidden: int, how: Mapping[str, Any], seed: int, key: str
) -> tuple[nn.Sequential, Cell]:
    """A network 2-hidden-hidden-2 that starts as H2O's do, trained as `how` says ("dropout" and Training's fields)."""
    dropout = float(how.get("dropout", 0.0))
    recipe = Training(**{name: value for name, value in how.items() if name != "dropout"})
    model = seeded(mlp, (2, hidden, hidden, 2), dropout, seed=seed)
    start_as_h2o(model, data.points, seed)

    def make() -> Cell:
        loss = train(model, data.points, data.labels, recipe, seed)
        numbers = {"accuracy": accuracy(model, data.points, data.labels), "loss": loss, "weights": count_weights(model)}
        return Cell(numbers, of_state(model, PREFIX))

    cell = context.cell(f"{key}/trained", make)
    model.load_state_dict(as_state(cell.arrays, PREFIX))
    model.eval()
    return model, cell
