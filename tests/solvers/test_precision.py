"""float32 products while the solver works: full precision whatever the process asks for, tensor cores in their place.

No GPU is needed: what is set is looked at, and TF32 is pretended by rounding.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from generate import layer
from torch import Tensor

from nettrim import solve
from nettrim.solvers import admm, hybrid, precision
from nettrim.solvers.design import Design
from nettrim.solvers.precision import full_precision, tensor_cores

CUDA = torch.device("cuda")


def present() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture(params=["highest", "high", "medium"])
def asked(request: pytest.FixtureRequest) -> Iterator[str]:
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision("highest")


def test_full_precision_holds_within_and_gives_back_what_was_asked_for(asked: str) -> None:
    before = present()
    with full_precision():
        assert present() == ("ieee", "ieee")
        with pytest.raises(ZeroDivisionError), full_precision():
            raise ZeroDivisionError
        assert present() == ("ieee", "ieee")  # the inner one leaves the outer one alone
    assert present() == before
    assert torch.get_float32_matmul_precision() == asked


def test_threads_that_overlap_leave_nothing_behind(asked: str) -> None:
    before, inside, first_left = present(), threading.Barrier(2), threading.Event()
    seen = []

    def first() -> None:
        with full_precision():
            inside.wait(10)
        first_left.set()

    def second() -> None:
        with full_precision():
            inside.wait(10)
            first_left.wait(10)
            seen.append(present())

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == [("ieee", "ieee")]
    assert present() == before


def test_tensor_cores_are_for_cuda_alone_and_only_within() -> None:
    with full_precision():
        with tensor_cores(torch.device("cpu")):
            assert present() == ("ieee", "ieee")
        with tensor_cores(CUDA):
            assert present() == ("tf32", "ieee")
        assert present() == ("ieee", "ieee")


def test_older_pytorch_has_one_setting_for_all(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace())
    assert len(precision._settings()) == 1
    with full_precision():
        assert torch.get_float32_matmul_precision() == "highest"
        with tensor_cores(CUDA):
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == asked


def test_a_solve_is_within_whatever_was_asked_for(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    seen = set()

    def watched(*args: object, **kwargs: object) -> object:
        seen.add(present())
        return blocks(*args, **kwargs)

    blocks = hybrid.solve_block
    monkeypatch.setattr(hybrid, "solve_block", watched)
    program, weight = layer("distance", samples=400, width=60)
    assert solve(program, 1e-4, initial=weight).certified
    assert seen == {("ieee", "ieee")}
    assert torch.get_float32_matmul_precision() == asked


def test_admm_uses_them_for_its_two_products_with_the_samples_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product with the inverse is between the two and stays in float32, as does all the rest."""
    events: list[str] = []

    @contextlib.contextmanager
    def noted(device: torch.device) -> Iterator[None]:
        events.append("in")
        yield
        events.append("out")

    def product(self: Design, weight: Tensor) -> Tensor:
        events.append("product")
        return weight @ self.narrow.T

    def pull(self: Design, values: Tensor) -> Tensor:
        events.append("pull")
        return values @ self.narrow

    monkeypatch.setattr(admm, "tensor_cores", noted)
    monkeypatch.setattr(Design, "product", product)
    monkeypatch.setattr(Design, "pull", pull)
    program, weight = layer("distance", samples=400, width=60)
    assert solve(program, 1e-4, initial=weight).certified
    joined = " ".join(events)
    step = "in pull out in product out"
    assert joined.count(step) >= 60
    assert set(joined.replace(step, "").split()) <= {"pull", "product"}  # the polish's rough ones, in float32


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("samples", [400, 40])
def test_ten_bits_in_the_products_with_the_samples_are_enough(
    monkeypatch: pytest.MonkeyPatch, constraint: str, samples: int
) -> None:
    """TF32 rounds both factors to ten bits; few samples too: the same supports, all certified."""
    program, weight = layer(constraint, samples=samples, width=60)
    exact = solve(program, 1e-4, initial=weight)
    monkeypatch.setattr(Design, "product", lambda self, weight: rounded(weight) @ rounded(self.narrow).T)
    monkeypatch.setattr(Design, "pull", lambda self, values: rounded(values) @ rounded(self.narrow))
    found = solve(program, 1e-4, initial=weight)
    assert exact.certified and found.certified
    assert torch.equal(found.weight != 0, exact.weight != 0)


def rounded(values: Tensor) -> Tensor:
    """To the nearest number with ten bits after its first."""
    return ((values.contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)
