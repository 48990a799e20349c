"""The search for a joint budget's multiplier, on sums whose root is known."""

import math

import pytest

from nettrim.blocks.multiplier import next_multiplier
from nettrim.layerwise import Answer

TOLERANCE = 1e-4


def search(distance, epsilon, first, tolerance=TOLERANCE):
    """(rounds, distance reached, relative to epsilon), for distances that follow from tau = 1 / (2 lambda)."""
    answers, multiplier = [], first
    while multiplier is not None:
        reached = distance(0.5 / multiplier)
        answers.append(Answer(multiplier, reached**2, 0.0, objective=1.0, bound=0.0))
        multiplier = next_multiplier(answers, epsilon, tolerance)
    return len(answers), math.sqrt(answers[-1].square) / epsilon


@pytest.mark.parametrize("first", [0.5e-3, 0.1, 0.5, 0.6, 3.0, 500.0])
@pytest.mark.parametrize(
    ("distance", "most"),
    [
        (lambda tau: tau, 5),
        (lambda tau: math.hypot(0.5, tau), 9),  # as in a cascade, where no weights reach distance zero
        (lambda tau: min(tau, 1.5), 9),  # saturated when all weights are zero
        (lambda tau: tau**0.5, 9),
        (lambda tau: tau**2, 9),
        (lambda tau: tau if tau < 0.9 else tau + 0.05, 9),
    ],
)
def test_the_root_is_found_in_few_rounds(distance, most, first):
    rounds, reached = search(distance, 1.0, first)
    assert reached == pytest.approx(1, rel=0.3 * math.sqrt(TOLERANCE))
    assert rounds <= most + (first > 100) * 2 + (first < 0.01) * 2


def test_a_good_guess_needs_no_second_round():
    assert search(lambda tau: tau, 1.0, 0.5001)[0] == 1


def test_a_jump_over_epsilon_ends():
    """Distances known to the solver's accuracy only may jump: the search stays in its bracket and ends."""
    rounds, reached = search(lambda tau: 0.9 * tau if tau < 1 else 1.1 * tau, 1.0, 0.3)
    assert rounds <= 20
    assert 0.85 < reached < 1.15


def test_weights_of_zero_within_epsilon_end_the_search():
    answer = Answer(1e-3, 0.5, 0.5, objective=0.0, bound=0.0)
    assert next_multiplier([answer], 1.0, TOLERANCE) is None


def test_a_certain_gap_ends_the_search():
    answer = Answer(1.0, 0.9, 0.0, objective=10.0, bound=10.0 + 1.0 - 1e-4)
    assert answer.gap(1.0) == pytest.approx(1e-5)
    assert next_multiplier([answer], 1.0, TOLERANCE) is None
    assert answer.gap(0.9) == math.inf  # the weights break this budget
    assert next_multiplier([answer], 0.9, TOLERANCE) is not None


def test_sums_of_parts():
    parts = [Answer(2.0, 1.0, 0.5, 3.0, 4.0, 10, 1.0), Answer(2.0, 2.0, 0.0, 1.0, 1.5, 30, 2.0)]
    assert Answer.over(parts) == Answer(2.0, 3.0, 0.5, 4.0, 5.5, 30, 3.0)


def test_what_few_neurons_have_to_make_up_for_counts_more():
    """Settled neurons keep their distance: a miss of one part in a thousand is one in ten for the last hundredth."""
    close = Answer(1.0, 1.002, 0.0, objective=10.0, bound=0.0)
    assert next_multiplier([close], 1.0, TOLERANCE) is None
    settled = Answer(1.0, 1.002, 0.99, objective=10.0, bound=0.0)
    assert next_multiplier([settled], 1.0, TOLERANCE) is not None
