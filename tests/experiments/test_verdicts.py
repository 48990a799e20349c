"""Reached, better, differs: each where it should be, and nothing where nothing was run."""

import math

import pytest

from nettrim.errors import InputError
from nettrim.experiments.verdicts import Claim, Expected, Sense, Verdict, compare, in_short, judge


@pytest.mark.parametrize(
    ("sense", "measured", "verdict"),
    [
        (Sense.HIGHER, 95.5, Verdict.REACHED),
        (Sense.HIGHER, 95.7, Verdict.REACHED),  # at the margin, whatever rounding says
        (Sense.HIGHER, 96.0, Verdict.BETTER),
        (Sense.HIGHER, 95.0, Verdict.DIFFERS),
        (Sense.LOWER, 95.0, Verdict.BETTER),
        (Sense.LOWER, 96.0, Verdict.DIFFERS),
        (Sense.LOWER, 95.6, Verdict.REACHED),
        (Sense.MATCH, 95.4, Verdict.REACHED),
        (Sense.MATCH, 96.0, Verdict.DIFFERS),
        (Sense.MATCH, 95.0, Verdict.DIFFERS),
    ],
)
def test_a_number_is_reached_within_its_margin_and_better_beyond_it_in_the_good_direction(sense, measured, verdict):
    assert judge(Expected("x", 95.5, "N table 1", sense, within=0.2), measured).verdict is verdict


def test_no_margin_asks_for_the_very_number():
    expected = Expected("weights", 362, "A", Sense.LOWER)
    assert judge(expected, 362).verdict is Verdict.REACHED
    assert judge(expected, 361).verdict is Verdict.BETTER
    assert judge(expected, 363).verdict is Verdict.DIFFERS


def test_what_was_not_run_has_no_verdict_but_says_so():
    for measured in (None, math.nan):
        found = judge(Expected("x", 1.0, "N"), measured)
        assert (found.verdict, found.measured) == (Verdict.MISSING, None)


def test_a_difference_gives_the_reason_written_down_or_owns_that_there_is_none():
    assert judge(Expected("x", 1.0, "N", why="Other noise."), 2.0).reason == "Other noise."
    assert judge(Expected("x", 1.0, "N"), 2.0).reason == "No reason is known."
    assert judge(Expected("x", 1.0, "N", why="Other noise."), 1.0).reason == ""


def test_where_the_paper_has_a_word_a_number_differs_and_the_word_is_quoted():
    found = judge(Expected("x", math.nan, "N", instead="EMT"), 97.0)
    assert found.verdict is Verdict.DIFFERS
    assert "EMT" in found.reason


def test_another_size_is_never_compared():
    expected = [Expected("x", 1.0, "N"), Expected("y", 1.0, "N")]
    found = compare(expected, {"x": 1.0}, comparable=False)
    assert [entry.verdict for entry in found] == [Verdict.UNLIKE, Verdict.MISSING]
    assert found[0].measured == 1.0


def test_a_number_expected_twice_is_refused():
    with pytest.raises(InputError, match="named once each"):
        compare([Expected("x", 1.0, "N"), Expected("x", 2.0, "N")], {})


def test_claims_are_confirmed_or_refuted():
    assert Claim("c", "N", True, "").verdict == "confirmed"
    assert Claim("c", "N", False, "").verdict == "refuted"


@pytest.mark.parametrize("measured", [4.9, 4.95, 5.4])
def test_what_was_chosen_to_match_is_no_outcome_however_near_it_came(measured):
    found = judge(Expected("discrepancy", 4.95, "N", Sense.SET, within=0.05), measured)
    assert (found.verdict, found.measured) == (Verdict.SET, measured)
    assert "no outcome" in found.reason
    assert judge(Expected("discrepancy", 4.95, "N", Sense.SET), None).verdict is Verdict.MISSING


def test_numbers_that_were_set_are_counted_apart():
    expected = [Expected("set", 1.0, "N", Sense.SET), Expected("x", 1.0, "N"), Expected("y", 1.0, "N", Sense.LOWER)]
    measured = {"set": 1.0, "x": 1.0, "y": 0.5}
    apart, rest = in_short(compare(expected, measured)).split(". ")
    assert apart == "Of 3 numbers of the paper 1 is set: chosen to match, no outcome"
    assert rest == "Of the other 2: 1 reached, 1 better."
    assert in_short(compare(expected[1:], measured)) == "Of 2 numbers of the paper: 1 reached, 1 better."
    assert in_short(compare(expected[:1], measured)).endswith("no outcome.")
    assert in_short(compare(expected, measured, comparable=False)) == "Of 3 numbers of the paper: 3 not comparable."
    assert in_short(()) == ""
