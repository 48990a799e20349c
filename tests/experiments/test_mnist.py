"""The MNIST loader: found, checked, refused with the files and places named, or replaced by the labelled stand-in."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from nettrim.errors import DataError
from nettrim.experiments import mnist


def idx(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small data set in MNIST's layout, with the checksums that make it the original."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (12, 4, 4)), rng.integers(0, 10, 12), rng.integers(0, 256, (5, 4, 4)), np.arange(5)]
    contents = {name: idx(array.astype(np.uint8)) for name, array in zip(mnist.FILES, arrays, strict=True)}
    sums = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(mnist, "FILES", sums)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NETTRIM_OFFLINE", "1")
    monkeypatch.delenv(mnist.VARIABLE, raising=False)

    def put(folder):
        folder.mkdir(parents=True)
        for name, content in contents.items():
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        return arrays

    return put


@pytest.mark.parametrize("place", ["data", "data/mnist"])
def test_found_in_the_folder_of_the_variable_or_below_it(small, tmp_path, monkeypatch, place):
    arrays = small(tmp_path / place)
    monkeypatch.setenv(mnist.VARIABLE, str(tmp_path / "data"))
    images = mnist.load_mnist()
    assert images.source.name == "MNIST" and images.source.papers
    assert images.train.shape == (12, 16) and images.side == 4
    assert torch.equal(images.train, torch.from_numpy(arrays[0].reshape(12, 16).astype(np.float32) / 255))
    assert images.train_labels.tolist() == arrays[1].tolist()
    assert images.test_labels.tolist() == [0, 1, 2, 3, 4]
    assert images.first(3, 2).train.shape == (3, 16) and len(images.first(3, 2).test) == 2


def test_found_in_the_cache(small, tmp_path):
    small(tmp_path / "cache" / "nettrim" / "mnist")
    assert len(mnist.load_mnist().train) == 12


def test_missing_files_are_named_with_where_to_put_them(small, tmp_path):
    with pytest.raises(DataError) as error:
        mnist.load_mnist()
    text = str(error.value)
    assert all(f"{name}.gz" in text for name in mnist.FILES)
    assert str(tmp_path / "cache" / "nettrim" / "mnist") in text and mnist.VARIABLE in text
    assert "switched off" in text


def test_other_content_is_refused(small, tmp_path, monkeypatch):
    small(tmp_path / "data")
    monkeypatch.setenv(mnist.VARIABLE, str(tmp_path / "data"))
    path = tmp_path / "data" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.zeros(12, np.uint8))))
    with pytest.raises(DataError, match="the original MNIST file"):
        mnist.load_mnist()


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"\0\0"), gzip.compress(b"\0\0\x0d\1\0\0\0\1\0\0\0\0")],
    ids=["empty", "no gzip", "too short", "other type"],  # compressed bytes carry the time, which no name should
)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"images\.gz"):
        mnist.read_idx(path)


def test_the_download_takes_the_next_mirror_and_checks_what_came(small, tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch")
    arrays = small(tmp_path / "mirror")
    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append(url)
        if url.startswith(mnist.MIRRORS[0]):
            raise OSError("no route")
        (path / fname).write_bytes((tmp_path / "mirror" / fname.removesuffix(".part")).read_bytes())

    monkeypatch.setenv("NETTRIM_OFFLINE", "0")
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    images = mnist.load_mnist()
    assert images.train_labels.tolist() == arrays[1].tolist()
    assert {url.rsplit("/", 1)[0] + "/" for url in asked} == set(mnist.MIRRORS)
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_without_any_mirror_the_error_says_why(small, monkeypatch):
    pooch = pytest.importorskip("pooch")

    def retrieve(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("NETTRIM_OFFLINE", "0")
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(DataError, match="no route to host"):
        mnist.load_mnist()


def test_the_stand_in_says_what_it_is_and_is_not_the_papers(small):
    images = mnist.load_images(stand_in=True)
    assert "stand in" in images.source.name and not images.source.papers
    assert images.train.shape == (1500, 64) and images.side == 8
    assert float(images.train.min()) >= 0 and float(images.train.max()) <= 1
    with pytest.raises(DataError, match="at most the 1500"):
        images.first(10_000)
    with pytest.raises(DataError):
        mnist.load_images(stand_in=False)
