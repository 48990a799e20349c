"""The lassos of many rows at once: each row gets what it would get alone, whatever the others' sizes."""

from dataclasses import replace

import pytest
import torch

from nettrim import Program
from nettrim.solvers import bordered, inner, padding
from nettrim.solvers.curvature import extended, nothing_known
from nettrim.solvers.inner import Lassos
from nettrim.solvers.padding import padded, places
from nettrim.solvers.problem import make_problem

ROWS, COLUMNS, SAMPLES = 9, 40, 160


def ragged(hard, seed=0):
    """Lassos of working sets, supports and sample sets of all sizes; some hold hard samples, some none."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(SAMPLES, COLUMNS, generator=generator, dtype=torch.float64)
    responses = torch.randn(SAMPLES, ROWS, generator=generator, dtype=torch.float64)
    problem = make_problem(Program.linear(inputs, responses, 0.1, "distance"))
    design = problem.design
    shares = torch.linspace(0, 1, ROWS, dtype=torch.float64)[:, None]
    wanted = torch.rand(ROWS, COLUMNS, generator=generator, dtype=torch.float64) <= shares
    active = torch.rand(ROWS, SAMPLES, generator=generator, dtype=torch.float64) < 0.6
    known = extended([nothing_known(design)] * ROWS, design, wanted, active)
    lassos = Lassos(design, known, torch.rand(ROWS, COLUMNS, generator=generator, dtype=torch.float64) + 0.5, 0.0)
    u = torch.where(wanted, torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64), 0.0)
    u = torch.where(torch.rand(ROWS, COLUMNS, generator=generator) < 0.7, u, 0.0)
    missing = torch.where(active, problem.lower - design.forward(u), 0.0)
    zero = torch.zeros_like(u)
    lassos.begin(u, u.sign(), design.back(missing), (missing**2).sum(dim=1), zero)
    if hard:
        near, watched = padded([(~row).nonzero()[:12, 0][: 3 * number] for number, row in enumerate(active)])
        held = watched & (torch.arange(near.shape[1]) < torch.arange(ROWS)[:, None] % 4)
        edge = torch.where(watched, torch.randn(near.shape, generator=generator, dtype=torch.float64), 0.0)
        lassos.bind(near, watched, held, edge, watched.to(edge), torch.zeros(ROWS, dtype=torch.float64))
    return lassos, design.dense().T, active, problem.lower


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard samples"])
def test_every_row_solves_its_own_equations(hard):
    """X_S' (b - X u) - X_B' nu = tau s costs and X_B u = edge, at two values of tau; and |b - X u|^2 is what the
    coefficients say."""
    lassos, x, active, b = ragged(hard)
    lassos.solve(torch.arange(ROWS))
    assert not bool(lassos.hopeless.any())
    for tau in (0.0, 0.7):
        lassos.take(torch.arange(ROWS), torch.full((ROWS,), tau, dtype=torch.float64))
        for row in range(ROWS):
            count = int(lassos.real[row].sum())
            support = lassos.signs[row, :count] != 0
            features = lassos.features[row, :count]
            u = torch.zeros(COLUMNS, dtype=torch.float64).index_put((features,), lassos.v[row, :count])
            assert not bool(lassos.v[row, :count][~support].any()) and not bool(lassos.v[row, count:].any())
            missing = torch.where(active[row], b[row] - x @ u, 0.0)
            pull = x.T @ missing
            if hard and int(support.sum()):
                held = lassos.near[row, lassos.held[row]]
                pull = pull - x[held].T @ lassos.nu[row, lassos.held[row]]
                assert torch.allclose(x[held] @ u, lassos.edge[row, lassos.held[row]], atol=1e-7)
            limit = tau * lassos.costs[row, :count] * lassos.signs[row, :count]
            assert torch.allclose(pull[features][support], limit[support], atol=1e-7)
            if int(support.sum()):
                q = lassos.q0[row, :count] + tau * lassos.q1[row, :count]
                assert torch.allclose(q, pull[features], atol=1e-7)
            c0, c1, c2 = lassos.coefficients[row].tolist()
            assert c0 + c1 * tau + c2 * tau**2 == pytest.approx(float(missing @ missing), rel=1e-7)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard samples"])
def test_batches_change_nothing(monkeypatch, hard):
    together, *_ = ragged(hard)
    alone, *_ = ragged(hard)
    together.solve(torch.arange(ROWS))
    monkeypatch.setattr(padding, "_BATCH", {"cpu": 0})  # a system each
    alone.solve(torch.arange(ROWS))
    for name in ("v0", "v1", "q0", "q1", "nu0", "nu1", "coefficients"):
        assert torch.allclose(getattr(together, name), getattr(alone, name), rtol=1e-9, atol=1e-9), name


def test_a_row_is_solved_without_touching_others():
    lassos, *_ = ragged(hard=True)
    lassos.solve(torch.tensor([5]))
    assert bool(lassos.v0[5].any())
    others = torch.arange(ROWS) != 5
    assert not bool(lassos.v0[others].any()) and bool(lassos.dirty[others].all()) and not bool(lassos.dirty[5])


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard samples"])
def test_the_worst_features_enter_a_few_at_a_time(hard):
    """At tau = 0 every feature outside a support exceeds its limit. With hard samples all of them enter."""
    lassos, *_ = ragged(hard)
    rows = torch.arange(ROWS)
    lassos.solve(rows)
    supports = lassos.signs != 0
    lassos.settle(rows, torch.zeros(ROWS, dtype=torch.float64), False)
    for row in range(ROWS):
        count = int(lassos.real[row].sum())
        inside, pull = supports[row, :count], lassos.q0[row, :count].abs()
        entered = (lassos.signs[row, :count] != 0) & ~inside
        left = ~inside & ~entered
        outside, share = int((~inside).sum()), int(inner._ENTERING * int(inside.sum()))
        assert int(entered.sum()) == (outside if hard else min(outside, max(inner._FEWEST, share)))
        if bool(left.any()):
            assert float(pull[entered].min()) >= float(pull[left].max())
        assert int(lassos.asked[row]) == count


def test_a_row_that_asks_for_more_weights_than_can_be_told_apart_is_lost():
    lassos, _, active, _ = ragged(hard=False)
    assert lassos.rank.tolist() == active.sum(dim=1).clamp(max=COLUMNS).tolist()
    lassos.rank[-2:] = lassos.real[-2:].sum(dim=1) - inner._SPARE - torch.tensor([0, 1])
    lassos.solve(torch.arange(ROWS))
    assert not bool(lassos.beyond.any())
    lassos.settle(torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.float64), False)
    assert lassos.beyond.nonzero().flatten().tolist() == [ROWS - 1]
    assert not bool(lassos.size[-1] > lassos.rank[-1])  # it was not let come so far


@pytest.mark.parametrize("samples", [90, 200])
def test_a_singular_support_is_nothing_to_go_on_from(samples):
    """Passes may ask for more weights than the samples tell apart. Once some have left, the equations are met as well
    as if nothing had been factored before: bordering the singular factor loses all digits but three."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 100, generator=generator, dtype=torch.float64)
    responses = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    design = make_problem(Program.linear(inputs, responses, 0.1, "distance")).design
    every = torch.ones(1, 100, dtype=torch.bool)
    known = extended([nothing_known(design)], design, every, torch.ones(1, samples, dtype=torch.bool))
    lassos = Lassos(design, known, torch.ones(1, 100, dtype=torch.float64), 0.0)
    signs = torch.randn(1, 100, generator=generator, dtype=torch.float64).sign()
    pull = design.back(torch.randn(1, samples, generator=generator, dtype=torch.float64))
    lassos.begin(torch.zeros_like(signs), signs, pull, torch.ones(1, dtype=torch.float64), torch.zeros_like(signs))
    lassos.solve(torch.tensor([0]))
    assert (0 in lassos.factors.known) == (samples > 100)
    lassos.signs[:, 80:] = 0.0
    lassos.solve(torch.tensor([0]))
    gram = known[0].gram[:80, :80]
    for solution, right in ((lassos.v0, lassos.linear), (lassos.v1, lassos.costs * lassos.signs)):
        missing = (gram @ solution[0, :80] - right[0, :80]).abs().max()
        assert float(missing) <= 1e-12 * float(gram.abs().sum(dim=1).max() * solution.abs().max())


def test_batches_hold_every_system_once():
    sizes = torch.tensor([700, 3, 90, 91, 400, 5, 92, 1, 405, 88])
    parts = list(padding.alike(sizes, "cpu"))
    assert sorted(torch.cat(parts).tolist()) == list(range(10))
    for part in parts:
        largest = int(sizes[part].max())
        assert len(part) == 1 or len(part) * largest**2 <= padding._BATCH["cpu"]
        assert float((largest**3 - sizes[part] ** 3).sum()) <= padding._WASTE


def test_padding():
    array, real = padded([torch.tensor([4, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([7])])
    assert array.tolist() == [[4, 2], [0, 0], [7, 0]] and real.tolist() == [[True, True], [False, False], [True, False]]
    mask = torch.tensor([[False, True, True], [False, False, False], [True, False, False]])
    array, real = places(mask)
    assert array.tolist() == [[1, 2], [0, 0], [0, 0]] and real.tolist() == [[True, True], [False, False], [True, False]]


@pytest.mark.parametrize("room", [1 << 27, 0], ids=["", "no room"])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard samples"])
def test_bordering_changes_nothing(monkeypatch, hard, room):
    """Supports and held samples that change a little, step by step: the same with a factor made anew every time."""
    going_on, *_ = ragged(hard)
    anew, *_ = ragged(hard)
    generator = torch.Generator().manual_seed(1)
    monkeypatch.setattr(bordered, "_SMALLEST", 4)
    going_on.design = replace(going_on.design, room=room)
    calls = []
    change = bordered.Factored.change
    monkeypatch.setattr(bordered.Factored, "change", lambda *arguments: calls.append(1) or change(*arguments))
    for _ in range(4):
        for lassos, share in ((anew, -1.0), (going_on, 0.5)):
            monkeypatch.setattr(bordered, "_BORDER", share)
            lassos.solve(torch.arange(ROWS))
        for name in ("v0", "v1", "q0", "q1", "nu0", "nu1", "coefficients"):
            assert torch.allclose(getattr(going_on, name), getattr(anew, name), rtol=1e-7, atol=1e-7), name
        flips = torch.rand(anew.signs.shape, generator=generator) < 0.05
        joins = torch.rand(anew.held.shape, generator=generator) < 0.1
        for lassos in (anew, going_on):
            lassos.signs = torch.where(flips & lassos.real, 1.0 - lassos.signs.abs(), lassos.signs)
            lassos.held = torch.where(joins & lassos.watched, ~lassos.held, lassos.held)
    assert bool(calls) == bool(room)
