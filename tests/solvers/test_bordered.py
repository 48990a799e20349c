"""Systems solved by bordering a factored one equal those that are factored anew."""

import pytest
import torch

from nettrim.solvers.bordered import Equations, Factored, Factors

FEATURES, NEAR = 30, 12
WATCHED = torch.arange(NEAR) * 3 + 5


def equations(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(80, FEATURES, generator=generator, dtype=torch.float64)
    around = torch.randn(NEAR, FEATURES, generator=generator, dtype=torch.float64)
    right = torch.randn(2, FEATURES + NEAR, generator=generator, dtype=torch.float64)
    right[1, FEATURES:] = 0.0
    return Equations(x.T @ x, around, right, FEATURES)


def whole(parts):
    """[G A'; A 0]."""
    corner = torch.zeros(NEAR, NEAR, dtype=torch.float64)
    return torch.cat([torch.cat([parts.gram, parts.around.T], 1), torch.cat([parts.around, corner], 1)])


def mask(*members):
    return torch.zeros(FEATURES + NEAR, dtype=torch.bool).index_fill(0, torch.tensor(members), True)


def factored(parts, members, padding=()):
    """Of some members (mask), with rows of the identity at the places `padding`."""
    index = members.nonzero()[:, 0]
    size = len(index) + len(padding)
    spots = torch.tensor([place for place in range(size) if place not in padding])
    matrix = torch.eye(size, dtype=torch.float64)
    matrix[spots[:, None], spots] = whole(parts)[index[:, None], index]
    spots = spots if padding else None
    inside, samples = index[index < FEATURES], WATCHED[index[index >= FEATURES] - FEATURES]
    if len(samples):
        return Factored(inside, samples, *torch.linalg.lu_factor(matrix), spots)
    return Factored(inside, samples, torch.linalg.cholesky(matrix), None, spots)


def change(start, parts, after):
    """The solution with zeros for what takes no part, or None."""
    members = start.members(FEATURES, WATCHED)
    assert members is not None
    gone = (~after[members]).nonzero()[:, 0]
    came = after.index_fill(0, members, False).nonzero()[:, 0]
    found = start.change(parts, members, gone, came)
    if found is None:
        return None
    kept = found[0].index_fill(1, gone, 0.0)
    return torch.zeros_like(parts.right).index_copy(1, members, kept).index_copy(1, came, found[1])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (mask(*range(20)), mask(*range(20))),
        (mask(*range(20)), mask(*range(3, 20))),
        (mask(*range(20)), mask(*range(25))),
        (mask(*range(20)), mask(*range(4, 26))),
        (mask(*range(20)), mask(*range(20), 32, 35)),
        (mask(*range(20), 30, 31, 40), mask(*range(2, 22), 31, 33, 41)),
        (mask(*range(20), 30, 31), mask(*range(20))),
    ],
    ids=["the same", "some leave", "some come", "both", "samples join", "all at once", "samples leave"],
)
@pytest.mark.parametrize("padding", [(), (20, 24)], ids=["", "padded"])
def test_equals_a_system_factored_anew(before, after, padding):
    if padding and int(before.sum()) < padding[-1]:
        padding = (20,)
    parts = equations()
    found = change(factored(parts, before, padding), parts, after)
    index = after.nonzero()[:, 0]
    expected = torch.zeros_like(parts.right)
    expected[:, index] = torch.linalg.solve(whole(parts)[index[:, None], index], parts.right[:, index].T).T
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_what_is_singular_is_not_answered():
    """A feature that comes and is a copy of one that is there; and a factor that was none."""
    parts = equations()
    copy = FEATURES - 1
    parts.gram[copy] = parts.gram[0]
    parts.gram[:, copy] = parts.gram[:, 0]
    parts.around[:, copy] = parts.around[:, 0]
    start = factored(parts, mask(*range(20)))
    assert change(start, parts, mask(*range(20), copy)) is None
    spoilt = Factored(start.inside, start.samples, torch.full_like(start.factor, torch.nan), None, None)
    assert change(spoilt, parts, mask(*range(21))) is None


def test_a_factor_serves_as_long_as_its_samples_are_watched():
    start = factored(equations(), mask(*range(20), FEATURES + 2, FEATURES + 7))
    wider = torch.cat([WATCHED, torch.tensor([7, 60])]).sort().values
    members = start.members(FEATURES + 5, wider)
    assert members[:20].tolist() == list(range(20))
    assert wider[members[20:] - FEATURES - 5].tolist() == start.samples.tolist()
    assert start.members(FEATURES, WATCHED[WATCHED[7] != WATCHED]) is None
    assert start.members(FEATURES, WATCHED[:3]) is None


def test_rows_of_other_sizes_are_changed_together():
    """Padding between a row's features and its hard samples, and after both, takes no part."""
    one, other = equations(), equations(1)
    features, near = FEATURES - 4, NEAR - 3
    small = Equations(other.gram[:features, :features], other.around[:near, :features], other.right, FEATURES)
    real = torch.ones(2, FEATURES, dtype=torch.bool)
    watched = torch.ones(2, NEAR, dtype=torch.bool)
    real[1, features:] = watched[1, near:] = False
    factors = Factors(1 << 20, real, WATCHED.expand(2, -1), watched)
    before = torch.stack([mask(*range(20), 32), mask(*range(15), 31, 34)])
    after = torch.stack([mask(*range(1, 22), 33), mask(*range(2, 17), 34, 36)])
    for row, parts in enumerate((one, other)):
        factors.keep(row, factored(parts, before[row]))
    assert factors.near_to(torch.arange(2), before).all()
    right = torch.stack([one.right, other.right])
    matrices = [(parts.gram, parts.around) for parts in (one, small)]
    done, found = factors.change(torch.arange(2), after, right, matrices)
    assert done == [0, 1]
    for row, parts in enumerate((one, other)):
        index = after[row].nonzero()[:, 0]
        expected = torch.zeros_like(parts.right)
        expected[:, index] = torch.linalg.solve(whole(parts)[index[:, None], index], parts.right[:, index].T).T
        torch.testing.assert_close(found[row], expected, rtol=1e-9, atol=1e-11)


def test_a_factor_serves_while_its_features_are_kept():
    parts = equations()
    start = factored(parts, mask(*range(3, 20, 2)))
    kept = torch.arange(1, FEATURES, 2)
    there = start.among(kept)
    assert kept[there.inside].tolist() == start.inside.tolist() and there.factor is start.factor
    assert start.among(torch.arange(4, FEATURES)) is None
    assert start.among(torch.arange(0)) is None
