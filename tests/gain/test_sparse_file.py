"""The sparse layout: lossless, as long as it says, readable from its description alone, and damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

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


def test_sizes_count_in_float32() -> None:
    tensors = {"w": sparse(50, 40)}
    assert sizes({"w": tensors["w"].double(), "steps": torch.tensor(3)}) == sizes(tensors)
