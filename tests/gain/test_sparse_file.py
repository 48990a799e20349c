"""The sparse layout: lossless, as long as it says, readable from its description alone, and damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nettrim.errors import DataError, InputError
from nettrim.gain import load_sparse, nonzeros, save_sparse, sizes
from nettrim.gain.sparse_file import FORMAT


def sparse(*shape: int, kept: float = 0.1, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) * (torch.rand(shape) < kept)).to(dtype)


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool(((one == other) | (one != one)).all())


def test_what_comes_back_is_what_went_in(tmp_path: Path) -> None:
    odd = sparse(3, 5, kept=0.2)
    odd[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    tensors = {
        "matrix": sparse(37, 11),
        "kernel": sparse(4, 3, 3, 3, dtype=torch.float16),
        "narrow": sparse(9, 9, dtype=torch.bfloat16),
        "wide": sparse(7, 3, dtype=torch.float64),
        "full": torch.randn(5, 6),
        "numbers": torch.arange(100) % 2,
        "nothing": torch.zeros(40),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(0.0),
        "odd": odd,
        "turned": sparse(8, 6).T,
    }
    path = tmp_path / "net.safetensors"
    size = save_sparse(path, tensors)
    assert size == path.stat().st_size
    found = load_sparse(path)
    assert set(found) == set(tensors)
    assert all(same(found[name], tensor) for name, tensor in tensors.items())
    assert size < sum(tensor.nbytes for tensor in tensors.values())


@given(st.integers(0, 2**20), st.integers(0, 40), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_any_tensor(seed: int, size: int, kept: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(size, generator=generator) * (torch.rand(size, generator=generator) < kept)
    with TemporaryDirectory() as folder:
        save_sparse(Path(folder) / "t", {"t": tensor})
        assert same(load_sparse(Path(folder) / "t")["t"], tensor)


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    """Read with nothing but safetensors and NumPy."""
    tensor = sparse(10, 13)
    save_sparse(tmp_path / "net", {"w": tensor})
    with safe_open(tmp_path / "net", framework="np") as archive:
        metadata = archive.metadata()
        mask, values = archive.get_tensor("w.mask"), archive.get_tensor("w.values")
    assert metadata["format"] == "nettrim-sparse-1"
    shape = json.loads(metadata["nettrim.sparse"])["w"]
    dense = np.zeros(np.prod(shape), values.dtype)
    dense[np.unpackbits(mask)[: dense.size] == 1] = values
    assert np.array_equal(dense.reshape(shape), tensor.numpy())


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "net"
    mask, values = torch.tensor([0b11000000], dtype=torch.uint8), torch.ones(2)

    def write(shapes: object, *, form: str = FORMAT, **tensors: Tensor) -> None:
        save_file(
            {f"w.{name}": t for name, t in tensors.items()}, path, {"format": form, "nettrim.sparse": str(shapes)}
        )

    write('{"w": [2, 3]}', mask=mask, values=values)
    assert load_sparse(path)["w"].tolist() == [[1, 1, 0], [0, 0, 0]]
    for shapes in ('{"w": [9]}', '{"w": [-2]}', '{"v": [6]}', "[", "[1]", '{"w": 3}', '{"w": ["x"]}'):
        write(shapes, mask=mask, values=values)
        with pytest.raises(DataError, match="should be"):
            load_sparse(path)
    write('{"w": [6]}', mask=mask, values=torch.ones(3))
    with pytest.raises(DataError, match="damaged"):
        load_sparse(path)
    write('{"w": [6]}', mask=mask.float(), values=values)
    with pytest.raises(DataError, match="damaged"):
        load_sparse(path)
    write('{"w": [1000000000000]}', mask=mask, values=values)
    with pytest.raises(DataError, match="unfolds"):
        load_sparse(path)
    write('{"w": [6]}', form="other", mask=mask, values=values)
    with pytest.raises(DataError, match="format"):
        load_sparse(path)
    path.write_bytes(b"\x80\x04nonsense")
    with pytest.raises(DataError, match="readable"):
        load_sparse(path)
    with pytest.raises(DataError):
        load_sparse(tmp_path / "missing")


def test_bad_names_and_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="w.mask"):
        save_sparse(tmp_path / "net", {"w": torch.zeros(100), "w.mask": torch.ones(3)})
    with pytest.raises(InputError, match="written"):
        save_sparse(tmp_path / "no" / "net", {"w": torch.zeros(100)})
    assert not list(tmp_path.iterdir())


def test_sizes_agree_with_files_really_written(tmp_path: Path) -> None:
    tensors = {"0.weight": sparse(300, 200, kept=0.1), "0.bias": torch.randn(300), "1.weight": sparse(8, 3, 3, 3)}
    found = sizes(tensors)
    save_file(tensors, tmp_path / "dense")
    assert found["dense"] == (tmp_path / "dense").stat().st_size
    assert found["bitmask"] == save_sparse(tmp_path / "sparse", tensors) == (tmp_path / "sparse").stat().st_size
    kept = nonzeros(tensors)
    assert kept == sum(int((tensors[name] != 0).sum()) for name in ("0.weight", "1.weight"))
    payload = 4 * (60000 + 300 + 216)
    assert payload < found["dense"] < payload + 500
    assert 60000 / 8 + 4 * kept < found["bitmask"] < 60216 / 8 + 4 * (kept + 300) + 700
    assert 8 * kept < found["csr"] < 8 * kept + 4 * (301 + 9 + 300) + 700
    assert found["bitmask zlib"] < found["bitmask"] < found["csr"] < found["dense"]
    assert found["bitmask lzma"] < found["bitmask"]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str
)
def test_sizes_count_each_tensor_in_its_own_type(dtype: torch.dtype, tmp_path: Path) -> None:
    weight = sparse(50, 40, dtype=torch.float32).to(dtype)
    kept, wide = int((weight.float() != 0).sum()), weight.element_size()
    found = sizes({"w": weight, "steps": torch.tensor(3)})
    save_file({"w": weight}, tmp_path / "dense")
    assert found["dense"] == (tmp_path / "dense").stat().st_size
    assert found["bitmask"] == save_sparse(tmp_path / "sparse", {"w": weight})
    assert 2000 * wide < found["dense"] < 2000 * wide + 200
    assert min((wide + 4) * kept, 2000 * wide) < found["csr"] < (wide + 4) * kept + 4 * 51 + 400
    assert found["bitmask lzma"] < 2000 / 8 + wide * kept + 100


def test_sizes_of_several_types_and_of_none() -> None:
    tensors = {"a": sparse(30, 30), "b": sparse(30, 30, dtype=torch.float16), "c": torch.zeros(0, 3)}
    assert sizes(tensors)["dense"] < sizes({name: tensor.double() for name, tensor in tensors.items()})["dense"]
    assert sizes({})["bitmask zlib"] == sizes({"steps": torch.tensor(3)})["bitmask zlib"] == 8


def test_what_is_no_tensor(tmp_path: Path) -> None:
    odd: list[Any] = [np.zeros((40, 40)), 3, None, torch.zeros(4, 4).to_sparse(), torch.zeros(4, device="meta")]
    for value in odd:
        with pytest.raises(InputError, match="should be a (dense )?tensor"):
            save_sparse(tmp_path / "net", {"w": value})
        with pytest.raises(InputError, match="should be a (dense )?tensor"):
            sizes({"w": value})
    for tensors in ([torch.zeros(3)], torch.zeros(3), {3: torch.zeros(3)}):
        with pytest.raises(InputError, match="by name"):
            save_sparse(tmp_path / "net", tensors)  # type: ignore[arg-type]
