"""Networks on images, trained once and kept: shared by the experiments on MNIST."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from torch import nn

from nettrim.experiments.checkpoints import Cell, as_state, of_state
from nettrim.experiments.context import Context
from nettrim.experiments.mnist import Images
from nettrim.experiments.pruning import count_weights
from nettrim.experiments.training import Standardised, Training, accuracy, cnn, mlp, seeded, start_as_h2o, train

PREFIX = "dense."


def trained(
    context: Context,
    data: Images,
    hidden: Sequence[int] | str,
    how: Mapping[str, Any],
    seed: int,
    key: str,
    *,
    as_h2o: bool = False,
) -> tuple[Callable[[], nn.Sequential], Cell]:
    """A network of the given hidden widths, "cnn" or "padded cnn", trained on `data` and tested; on the run's device.

    The network comes when it is called for: of an earlier run there may be no more than the numbers.
    `as_h2o`: a perceptron that standardises its inputs and starts as H2O's do.
    """
    device = context.device or "cpu"
    if isinstance(hidden, str):
        model = seeded(partial(cnn, padded=hidden == "padded cnn"), data.side, seed=seed).to(device)
    else:
        classes = int(data.train_labels.max()) + 1
        model = seeded(mlp, (data.train.shape[1], *map(int, hidden), classes), seed=seed)
        if as_h2o:
            standardised = Standardised(data.train)
            start_as_h2o(model, standardised(data.train), seed)
            model = nn.Sequential(standardised, *model)
        model = model.to(device)

    def make() -> Cell:
        loss = train(model, data.train.to(device), data.train_labels.to(device), Training(**how), seed)
        numbers = {"accuracy": tested(model, data, context), "loss": loss, "weights": count_weights(model)}
        return Cell(numbers, of_state(model, PREFIX))

    cell = context.cell(f"{key}/trained", make)

    @cache
    def network() -> nn.Sequential:
        model.load_state_dict(as_state(cell.arrays, PREFIX))
        model.eval()
        return model

    return network, cell


def tested(model: nn.Module, data: Images, context: Context) -> float:
    """Accuracy on the test samples in percent, on the run's device."""
    device = context.device or "cpu"
    return accuracy(model.to(device), data.test.to(device), data.test_labels.to(device))
