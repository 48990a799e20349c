"""Data files: what is written comes back, and every kind of broken file is refused by one sentence."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from nettrim.data import digest, load_data
from nettrim.errors import DataError

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 1, 0])


def write(folder: Path, name: str, **arrays: np.ndarray) -> Path:
    path = folder / name
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    elif path.suffix == ".npy":
        np.save(path, arrays["inputs"])
    else:
        save_file({key: torch.from_numpy(array.copy()) for key, array in arrays.items()}, path)
    return path


@pytest.mark.parametrize("name", ["data.npz", "data.safetensors"])
def test_inputs_and_labels_come_back(tmp_path: Path, name: str) -> None:
    data = load_data(write(tmp_path, name, inputs=X, labels=Y))
    assert isinstance(data.inputs, torch.Tensor) and data.labels is not None
    assert data.inputs.dtype == torch.float32 and data.samples == 4
    assert torch.equal(data.inputs, torch.from_numpy(X)) and torch.equal(data.labels, torch.from_numpy(Y))


def test_npy_holds_inputs_alone(tmp_path: Path) -> None:
    data = load_data(write(tmp_path, "data.npy", inputs=X))
    assert data.labels is None
    assert torch.equal(torch.as_tensor(data.inputs), torch.from_numpy(X))


@pytest.mark.parametrize("array", [np.asfortranarray(X), X.astype(">f4"), X[::2], X.astype("f8"), (X * 9).astype("u1")])
def test_memory_layout_does_not_matter(tmp_path: Path, array: np.ndarray) -> None:
    data = load_data(write(tmp_path, "data.npy", inputs=array))
    assert np.array_equal(torch.as_tensor(data.inputs).numpy(), array)


def test_tensors_may_be_written_to(tmp_path: Path) -> None:
    inputs = load_data(write(tmp_path, "data.safetensors", inputs=X)).inputs
    assert isinstance(inputs, torch.Tensor)
    inputs.add_(1)
    assert torch.equal(torch.as_tensor(load_data(tmp_path / "data.safetensors").inputs), torch.from_numpy(X))


def test_several_inputs_are_named(tmp_path: Path) -> None:
    data = load_data(write(tmp_path, "data.npz", **{"inputs.image": X, "inputs.age": Y[:, None], "labels": Y}))
    assert isinstance(data.inputs, dict) and set(data.inputs) == {"image", "age"}
    assert data.samples == 4


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    one = load_data(write(tmp_path, "a.npz", inputs=X, labels=Y))
    two = load_data(write(tmp_path, "b.safetensors", inputs=X, labels=Y))
    assert one.digest == two.digest == digest({"labels": torch.from_numpy(Y), "inputs": torch.from_numpy(X)})
    changed = X.copy()
    changed[3, 2] += 1e-6 * changed[3, 2]
    others = [{"inputs": changed, "labels": Y}, {"inputs": X}, {"inputs": X.astype("f8"), "labels": Y}]
    digests = {load_data(write(tmp_path, "c.npz", **other)).digest for other in others}
    assert len(digests) == 3 and one.digest not in digests


def test_folder_joins_its_files_by_name(tmp_path: Path) -> None:
    write(tmp_path, "part-2.npz", inputs=X + 100, labels=Y)
    write(tmp_path, "part-1.npz", inputs=X, labels=Y)
    (tmp_path / ".hidden").write_text("passed over")
    data = load_data(tmp_path)
    assert np.array_equal(torch.as_tensor(data.inputs).numpy(), np.concatenate([X, X + 100]))
    assert data.labels is not None and len(data.labels) == 8


def test_folder_of_inputs_and_labels(tmp_path: Path) -> None:
    write(tmp_path, "inputs.npy", inputs=X)
    write(tmp_path, "labels.npy", inputs=Y)
    data = load_data(tmp_path)
    assert data.samples == 4 and data.labels is not None and torch.equal(data.labels, torch.from_numpy(Y))


def test_folder_of_unlike_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.npz", inputs=X, labels=Y)
    write(tmp_path, "b.npz", inputs=X)
    with pytest.raises(DataError, match=r"one layout.*'a\.npz'.*'b\.npz'"):
        load_data(tmp_path)


def test_folder_limit_counts_all_files(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy", "c.npy"):
        write(tmp_path, name, inputs=np.ones((100, 10)))
    with pytest.raises(DataError, match="unfolded"):
        load_data(tmp_path, max_bytes=20_000)


@pytest.mark.parametrize(
    ("value", "named"), [(np.nan, "nan in sample 2"), (np.inf, "inf in sample 2"), (-np.inf, "-inf in sample 2")]
)
def test_a_value_not_finite_is_named(tmp_path: Path, value: float, named: str) -> None:
    broken = X.copy()
    broken[2, 1] = value
    with pytest.raises(DataError, match=f"`inputs` should be finite everywhere. Got {named}"):
        load_data(write(tmp_path, "data.npz", inputs=broken))


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"input": X}, "an array 'inputs'.*Got 'input'"),
        ({"inputs": X, "extra": X}, "Got 'extra', 'inputs'"),
        ({"inputs": X, "inputs.more": X}, "Got 'inputs', 'inputs.more'"),
        ({"labels": Y}, "Got 'labels'"),
        ({}, "Got none"),
        ({"inputs": X, "labels": Y[:3]}, "as many labels as samples.*4 inputs, 3 labels"),
        ({"inputs": X[:0]}, r"at least one sample. Got shape \(0, 3\)"),
        ({"inputs": np.float32(1)}, r"at least one sample. Got shape \(\)"),
        ({"inputs": X + 1j}, "arrays of real numbers"),
        ({"inputs": X.astype(str)}, "arrays of real numbers"),
    ],
)
def test_a_wrong_layout_is_named(tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_data(write(tmp_path, "data.npz", **arrays))


@pytest.mark.parametrize("name", ["data.npz", "data.npy", "data.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, name: str, kept: float) -> None:
    path = write(tmp_path, name, inputs=np.random.default_rng(0).random((50, 3)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match=r"undamaged file. Got '.*data\."):
        load_data(path)


@pytest.mark.parametrize("name", ["data.npz", "data.npy", "data.safetensors", "data.pkl", "data.pth"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_renamed_pickles_are_refused(tmp_path: Path, name: str, protocol: int) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"inputs": X}, protocol=protocol))
    with pytest.raises(DataError, match="holds a pickle. A pickle can run any code"):
        load_data(path)


@pytest.mark.parametrize("name", ["data.npz", "data.npy", "data.pt"])
def test_renamed_torch_archives_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save({"inputs": torch.ones(2, 2)}, path)
    with pytest.raises(DataError, match="holds a pickle"):
        load_data(path)


@pytest.mark.parametrize("name", ["data.npz", "data.npy"])
def test_object_arrays_are_refused_and_not_run(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "sprung",)

    with pytest.raises(DataError, match="holds a pickle"):
        load_data(write(tmp_path, name, inputs=np.array([Trap()], dtype=object)))
    assert not (tmp_path / "sprung").exists()


def test_safetensors_header_that_looks_like_a_pickle(tmp_path: Path) -> None:
    """A header of 640 bytes has a length that begins with 0x80 0x02, as pickles do."""
    path = tmp_path / "data.safetensors"
    for padding in range(500, 640, 4):
        save_file({"inputs": torch.ones(1, 1)}, path, metadata={"note": "x" * padding})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert load_data(path).samples == 1


def test_zip_bombs_are_refused_before_they_unfold(tmp_path: Path) -> None:
    path = write(tmp_path, "bomb.npz", inputs=np.zeros((100, 2**17)))  # 105 MB of zeros
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError, match=r"unfolds to at most 200 times its size. Got .* that unfold to 104,857,"):
        load_data(path)
    with pytest.raises(DataError, match="at most 1,000 bytes unfolded"):
        load_data(path, max_bytes=1_000_000 // 1000)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_promises_too_much_is_refused(tmp_path: Path, compression: int) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10**6)})
    with zipfile.ZipFile(tmp_path / "data.npz", "w", compression) as archive:
        archive.writestr("inputs.npy", header.getvalue() + b"\0" * 64)
    (tmp_path / "data.npy").write_bytes(header.getvalue() + b"\0" * 64)
    for name in ("data.npz", "data.npy"):
        with pytest.raises(DataError, match="promises an array of 8,000,000,000,000,000,000 bytes"):
            load_data(tmp_path / name)


def test_other_members_and_doubles_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "data.npz", inputs=X)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"'readme\.txt'"):
        load_data(path)
    path = write(tmp_path, "double.npz", inputs=X)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("inputs.npy", archive.read("inputs.npy"))
    with pytest.raises(DataError, match=r"'inputs\.npy'"):
        load_data(path)


def test_missing_empty_and_foreign_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a file or folder that exists"):
        load_data(tmp_path / "absent.npz")
    with pytest.raises(DataError, match="empty folder"):
        load_data(tmp_path)
    (tmp_path / "data.csv").write_text("1,2\n")
    with pytest.raises(DataError, match=r"a \.npz, \.npy or \.safetensors file"):
        load_data(tmp_path / "data.csv")


@given(st.data())
def test_a_flipped_byte_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any one byte of any format changed: a DataError or finite samples, never another exception."""
    folder = tmp_path_factory.getbasetemp() / "flip"
    folder.mkdir(exist_ok=True)
    path = write(folder, data.draw(st.sampled_from(["data.npz", "data.npy", "data.safetensors"])), inputs=X)
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    try:
        read = load_data(path)
    except DataError:
        return
    arrays = read.inputs.values() if isinstance(read.inputs, dict) else [read.inputs]
    assert all(array.double().isfinite().all() for array in arrays)
