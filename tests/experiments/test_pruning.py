"""The search for an epsilon, truncation as HPTD does it, fine-tuning on a support, and noise of a known size."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nettrim.experiments.noise import noisy, robustness
from nettrim.experiments.pruning import OURS, PAPER, count_weights, discrepancy, prune, seek, supports, truncated
from nettrim.experiments.training import Training, accuracy, cnn, mlp, seeded, train


def law(power: float):
    """Attempts whose measure is epsilon to a power."""
    return lambda epsilon: SimpleNamespace(epsilon=epsilon, value=100 * epsilon**power)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("start", [1e-3, 0.02, 0.5])
def test_the_search_ends_just_below_the_target(power, start):
    found = seek(law(power), lambda made: made.value, 4.0, start, within=0.05, most=20)
    assert 4.0 * 0.95 <= found.value <= 4.0


def test_between_two_attempts_a_line_is_followed():
    tried = []

    def attempt(epsilon):
        tried.append(epsilon)
        return law(1.5)(epsilon)

    found = seek(attempt, lambda made: made.value, 4.0, 0.05, within=0.05, most=3)
    assert len(tried) == 3 and 4.0 * 0.95 <= found.value <= 4.0


def test_the_search_follows_a_measure_that_falls():
    found = seek(law(-0.5), lambda made: made.value, 900.0, 0.5, rising=False, within=0.05, most=20)
    assert 900 * 0.95 <= found.value <= 900


@pytest.mark.parametrize(
    ("power", "target", "start"), [(-0.1, 115.0, 1.0), (0.1, 90.0, 1.0), (-3.0, 40.0, 1.0)], ids=str
)
def test_a_measure_that_moves_little_or_much_is_met_in_three_attempts(power, target, start):
    tried = []

    def attempt(epsilon):
        tried.append(epsilon)
        return law(power)(epsilon)

    found = seek(attempt, lambda made: made.value, target, start, rising=power > 0, within=0.05, most=4)
    assert len(tried) <= 3 and target * 0.95 <= found.value <= target


def test_weights_that_fall_slowly_at_first_are_not_leapt_over():
    """A convolutional network's: where epsilon is small their number hardly moves, and a line from there leads far."""
    epsilons, kept = [0.003, 0.009, 0.012, 0.021, 0.095, 0.3], [80.0, 76.0, 73.5, 66.0, 26.0, 12.0]

    def attempt(epsilon):
        return SimpleNamespace(value=float(np.interp(np.log(epsilon), np.log(epsilons), kept)))

    found = seek(attempt, lambda made: made.value, 54.3, 0.009, rising=False, within=0.05, most=4)
    assert 54.3 * 0.9 <= found.value <= 54.3


def test_with_few_attempts_the_best_that_keeps_the_target_is_taken():
    tried = []

    def attempt(epsilon):
        tried.append(epsilon)
        return law(1.0)(epsilon)

    found = seek(attempt, lambda made: made.value, 4.0, 1e-3, within=1e-9, most=3)
    assert len(tried) == 3
    assert found.value == max(100 * epsilon for epsilon in tried if 100 * epsilon <= 4.0)


def test_where_every_attempt_is_beyond_the_target_the_nearest_is_taken():
    stuck = seek(lambda epsilon: SimpleNamespace(value=7.0 + epsilon), lambda made: made.value, 4.0, 0.5, most=3)
    assert stuck.value < 7.5


def test_truncation_keeps_the_largest_weights_of_each_layer():
    model = seeded(mlp, (6, 5, 3), seed=0)
    cut = truncated(model, {"0.weight": 7, "2.weight": 15})
    assert count_weights(cut) == (7, 15) and count_weights(model) == (30, 15)
    old, new = model[0].weight.detach(), cut[0].weight.detach()
    kept = new != 0
    assert float(new[kept].abs().min()) >= float(old[~kept].abs().max())
    assert torch.equal(new[kept], old[kept])


def test_fine_tuning_stays_on_the_support():
    model = truncated(seeded(mlp, (6, 20, 3), seed=0), {"0.weight": 40})
    before = supports(model)
    inputs = torch.randn(90, 6)
    labels = inputs[:, :3].argmax(dim=1)
    old = accuracy(model, inputs, labels)
    train(model, inputs, labels, Training(epochs=60, batch=30, rate=1e-2), 0, before)
    assert accuracy(model, inputs, labels) > old
    assert bool(((model[0].weight == 0) | before["0.weight"]).all())


def test_training_is_decided_by_its_seed_and_leaves_the_generator_alone():
    inputs, labels = torch.randn(50, 4), torch.arange(50) % 3
    state = torch.get_rng_state()

    def trained(seed: int) -> torch.Tensor:
        model = seeded(mlp, (4, 8, 3), 0.2, seed=seed)
        train(model, inputs, labels, Training(epochs=3, batch=10), seed)
        return model[0].weight.detach()

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))
    assert torch.equal(state, torch.get_rng_state())


def test_l1_training_ends_at_exact_zeros():
    inputs, labels = torch.randn(60, 8), torch.arange(60) % 2
    plain, sparse = (seeded(mlp, (8, 10, 2), seed=0) for _ in range(2))
    train(plain, inputs, labels, Training(epochs=100, rate=1e-2), 0)
    train(sparse, inputs, labels, Training(epochs=100, rate=1e-2, l1=1.0), 0)
    assert sum(count_weights(sparse)) < sum(count_weights(plain)) == 100


@pytest.mark.parametrize(("side", "padded", "features"), [(28, False, 512), (28, True, 1568), (20, False, 128)])
def test_the_papers_convolutional_network_has_its_sizes(side, padded, features):
    model = cnn(side, padded=padded)
    assert model[8].in_features == features
    assert model(torch.zeros(2, side * side)).shape == (2, 10)
    assert model[1].weight.shape == (32, 1, 5, 5) and model[4].weight.shape == (32, 32, 5, 5)
    assert model[8].out_features == 512


def test_what_is_said_of_a_pruned_network_is_true_of_it():
    torch.manual_seed(1)
    model, data = mlp((5, 8, 3)), torch.randn(60, 5)
    for how in (PAPER, OURS):
        pruned = prune(model, data, 0.1, **how)
        assert pruned.weights == count_weights(pruned.model)
        assert pruned.before == 64 and pruned.total < 64
        assert pruned.discrepancy == pytest.approx(discrepancy(model, pruned.model, data), rel=1e-4)
        assert pruned.certified and max(pruned.layer_discrepancies) <= 10.0001


def test_noise_has_the_norm_asked_for_and_is_the_same_for_every_model():
    images = torch.rand(40, 16)
    for level in (0.05, 1.6):
        added = noisy(images, level, 3) - images
        assert float(added.norm() / images.norm()) == pytest.approx(level, rel=1e-4)
    assert torch.equal(noisy(images, 0.5, 3), noisy(images, 0.5, 3))
    assert not torch.equal(noisy(images, 0.5, 3), noisy(images, 0.5, 4))
    model = seeded(mlp, (16, 4), seed=0)
    labels = model(images).argmax(dim=1)
    marks = robustness(model, images, labels, [0.0, 3.0], 2)
    assert marks[0] == 100.0 > marks[1]
