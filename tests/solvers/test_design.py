"""Products with the inputs: the same whether the samples are kept, streamed, or picked by reference."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from nettrim.programs import Program
from nettrim.solvers import refit, solve
from nettrim.solvers.design import Design, make_design, symmetric_product


def inputs_of(seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(700, 9, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("memory", [None, 1000])
@pytest.mark.parametrize("restricted", [False, True])
def test_products_and_gram_matrices(memory: int | None, restricted: bool) -> None:
    inputs = inputs_of()
    design = make_design(inputs, torch.float32, memory)
    assert (design.wide is None) == (memory is not None)
    if restricted:
        samples = torch.arange(5, 695)
        design, inputs = design.restrict(samples).restrict(torch.arange(600)), inputs[5:605]
    exact = inputs.double() * design.factor
    generator = torch.Generator().manual_seed(1)
    weight, dual = (
        torch.randn(3, 9, generator=generator).double(),
        torch.randn(3, len(exact), generator=generator).double(),
    )
    torch.testing.assert_close(design.forward(weight), weight @ exact.T)
    torch.testing.assert_close(design.back(dual), dual @ exact)
    torch.testing.assert_close(design.product(weight.float()), (weight @ exact.T).float())
    torch.testing.assert_close(design.pull(dual.float()), (dual @ exact).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(design.squares, (exact**2).sum(dim=0))
    torch.testing.assert_close(design.total, exact.T @ exact)
    torch.testing.assert_close(design.dense(), exact.T)
    features, picked = torch.tensor([1, 4, 7]), torch.arange(0, len(exact), 2)
    torch.testing.assert_close(design.columns(features), exact.T[features])
    torch.testing.assert_close(design.take(picked, features), exact[picked][:, features])
    scale = dual[0, picked].abs()
    part = exact[picked][:, features]
    torch.testing.assert_close(design.gram(picked, features, weights=scale), part.T @ (part * scale[:, None]))
    torch.testing.assert_close(design.gram(picked, features, first=2), part.T @ part[:, 2:])
    for chosen in (dual[0] > 1, dual[0] < 1):
        torch.testing.assert_close(design.gram_of(chosen), exact[chosen].T @ exact[chosen])


def test_scaling_rounds_nothing() -> None:
    inputs = inputs_of() * 1.2345e7
    design = make_design(inputs, torch.float32)
    assert design.narrow is not None and float(design.narrow.abs().max()) <= 1
    assert torch.equal(design.narrow * design.scale, inputs)


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("size", [1.0, 2.0**55, 2.0**-55])
def test_a_small_budget_changes_no_answer(constraint: str, size: float, tmp_path) -> None:
    """The inputs are a memory-mapped file, larger than the budget; of ordinary size they are multiplied unscaled."""
    generator = torch.Generator().manual_seed(2)
    values = size * torch.randn(2000, 30, generator=generator)
    np.save(tmp_path / "inputs.npy", values.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "inputs.npy", mmap_mode="c"))
    weight = torch.randn(4, 30, generator=generator)
    responses = torch.relu(values @ weight.T)
    epsilon = 0.1 * responses.double().norm(dim=0)
    kept, streamed = (
        Program.relu(inputs, responses, epsilon, constraint, budget="neuron") for inputs in (values, mapped)
    )
    one, other = solve(kept, 1e-4), solve(streamed, 1e-4, memory_budget=50_000)
    assert one.certified and other.certified
    assert other.certificate.objective == pytest.approx(one.certificate.objective, rel=1e-4)
    first, second = refit(kept, one.weight), refit(streamed, one.weight, memory_budget=50_000)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_products_read_a_source_where_it_lies_unless_they_would_copy_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows or columns in one piece are read as they are; of others a slice is copied at a time."""
    whole = torch.randn(600, 40, generator=torch.Generator().manual_seed(3))
    weight, values = torch.randn(3, 20), torch.randn(3, 300)
    slices, walk = [], Design._slices

    def noted(design: Design, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
        slices.append(dtype)
        return walk(design, dtype)

    monkeypatch.setattr(Design, "_slices", noted)
    columns = whole[:300, :20].T.contiguous().T
    for inputs, copied in ((whole[:300, :20], False), (columns, False), (whole[::2, ::2], True)):
        design = make_design(inputs, torch.float32, memory=1 << 14)
        slices.clear()
        product, pulled = design.product(weight), design.pull(values)
        assert design.narrow is None and bool(slices) == copied
        torch.testing.assert_close(design.scale * product, weight @ inputs.T)
        torch.testing.assert_close(design.scale * pulled, values @ inputs)


@pytest.mark.parametrize("width", [99, 100, 103, 260])
def test_symmetric_products_in_blocks(width):
    left = torch.randn(40, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    product = symmetric_product(left, 2.0 * left)
    block = torch.arange(width) // -(-width // 5)
    mirrored = block[:, None] != block  # what lies within a block is symmetric to rounding, as the processor has it
    assert width < 100 or torch.equal(product[mirrored], product.T[mirrored])
    torch.testing.assert_close(product, 2.0 * (left.T @ left), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("samples", "rank"), [(40, 12), (40, 5), (7, 12)])
def test_independent_inputs_are_counted(samples: int, rank: int) -> None:
    """As many as the rank, whatever the inputs' scales."""
    generator = torch.Generator().manual_seed(0)
    factors = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((samples, rank), (rank, 12)))
    inputs = torch.linalg.multi_dot(list(factors)) * torch.logspace(-7, 7, 12, dtype=torch.float64)
    design = make_design(inputs, torch.float64)
    assert design.independent == min(samples, rank) == int(torch.linalg.matrix_rank(inputs / inputs.norm(dim=0)))
