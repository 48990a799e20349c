"""Table 1's claims where as much is pruned as in the paper."""

import pytest

from nettrim.experiments.mnist_table1 import _table, at_their_pruning

_PAPER = {
    f"{name}/{panel}: {title}": value
    for name in ("one", "two")
    for panel in ("a", "b")
    for title, value in (("Total Pruning (%)", 70.0), ("NT No FT Acc. (%)", 94.0), ("NT + FT Acc. (%)", 95.0))
}


def _run(pruning, accuracy, tuned, hptd):
    return {"pruning": pruning, "accuracy": accuracy, "tuned accuracy": tuned, "HPTD tuned accuracy": hptd}


@pytest.mark.parametrize(
    ("accuracy", "tuned", "hptd", "holds"),
    [(94.5, 95.5, 95.0, (True, True, True)), (93.5, 95.5, 95.6, (False, True, False))],
    ids=["all hold", "worse without tuning, and behind HPTD"],
)
def test_networks_are_judged_at_the_papers_pruning_alone(accuracy, tuned, hptd, holds):
    found = {
        ("one", "b", "NT"): _run(50.0, 10.0, 10.0, 99.0),  # prunes less: not to be compared
        ("one", "b", "NT P"): _run(70.2, accuracy, tuned, hptd),
        ("two", "a", "NT"): _run(69.6, 94.5, 95.5, 95.0),  # prunes as much to begin with
        ("two", "a", "ours D"): _run(80.0, 10.0, 10.0, 99.0),  # at no pruning that was asked for
    }
    claims = at_their_pruning(found, _PAPER)
    assert tuple(claim.holds for claim in claims) == holds
    assert "70.2 % pruned" in claims[0].evidence and "69.6 % pruned" in claims[0].evidence


def test_our_default_is_judged_there_too_and_by_itself():
    found = {
        ("one", "b", "NT P"): _run(70.2, 93.0, 94.0, 95.0),
        ("one", "b", "ours P"): {"pruning": 70.4, "accuracy": 94.2, "tuned accuracy": 94.9},
        ("two", "a", "ours S"): {"pruning": 70.1, "accuracy": 94 - 1e-13, "tuned accuracy": 95.0},  # as NT already
        ("two", "b", "ours S"): {"pruning": 60.0, "accuracy": 10.0, "tuned accuracy": 10.0},
    }
    claims = at_their_pruning(found, _PAPER)
    assert [claim.holds for claim in claims] == [False, False, False, True, False]
    assert all("by our default" in claim.text for claim in claims[3:])
    assert "in 2 of 2" in claims[3].evidence and "in 1 of 2" in claims[4].evidence


def test_without_such_networks_nothing_is_claimed():
    assert at_their_pruning({("one", "a", "NT"): _run(50.0, 99.0, 99.0, 99.0)}, _PAPER) == []


def test_hptd_stands_beside_our_default_where_it_ran_and_a_dash_where_an_older_part_lacks_it():
    old = {"pruning": 70.4, "accuracy": 94.2, "tuned accuracy": 94.9}
    new = old | {"HPTD accuracy": 60.0, "HPTD tuned accuracy": 95.2}
    base = _run(70.0, 94.0, 95.0, 95.1) | {"trapped": 0.0, "certified": 1.0}
    found = {(name, "b", "NT"): base for name in ("one", "two")}
    found |= {("one", "b", "ours P"): new, ("two", "b", "ours P"): old}
    rows = {row[0]: row[1:] for row in _table("b", {"one": {}, "two": {}}, found).rows}
    assert rows["our default, the paper's pruning: HPTD No FT Acc. (%)"] == (60.0, None)
    assert rows["our default, the paper's pruning: HPTD + FT Acc. (%)"] == (95.2, None)
    beside = [claim for claim in at_their_pruning(found, _PAPER) if "HPTD's" in claim.text]
    assert [claim.holds for claim in beside] == [False, False]
    assert "by our default" in beside[1].text and "in 0 of 1" in beside[1].evidence
