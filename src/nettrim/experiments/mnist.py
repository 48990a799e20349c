"""MNIST from a folder of the user's, the cache, or a mirror; scikit-learn's digits where there is none.

The folder is NETTRIM_DATA, holding the four .gz files or a folder `mnist` with them. Checksums are of the uncompressed
content, since mirrors compress differently.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nettrim.errors import DataError, MissingExtraError, should
from nettrim.experiments.context import Source

VARIABLE = "NETTRIM_DATA"
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
FILES = {  # md5 of the content, uncompressed
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_LARGEST = 64 * 2**20  # bytes of one file, uncompressed


@dataclass(frozen=True, eq=False)
class Images:
    """Images with labels, in the original order, for training and for testing."""

    source: Source
    train: Tensor  # (samples, pixels) float32 in [0, 1]
    train_labels: Tensor  # (samples,) int64
    test: Tensor
    test_labels: Tensor
    side: int  # pixels of an edge

    def first(self, train: int, test: int | None = None) -> Images:
        """The first samples of each part, as A section 5.2 takes them. Raises DataError where there are fewer."""
        if train > len(self.train):
            cure = f"Put MNIST in place ({VARIABLE}), or use --quick."
            raise DataError(
                should("training samples", f"at most the {len(self.train)} of {self.source.name}", train, cure)
            )
        return Images(
            self.source,
            self.train[:train],
            self.train_labels[:train],
            self.test[:test],
            self.test_labels[:test],
            self.side,
        )

    def to(self, device: torch.device | str) -> Images:
        """The same images on a device."""
        return Images(
            self.source,
            self.train.to(device),
            self.train_labels.to(device),
            self.test.to(device),
            self.test_labels.to(device),
            self.side,
        )


def cache_folder() -> Path:
    """The user's cache for data sets (XDG_CACHE_HOME, ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nettrim"


def find_mnist(download: bool = True) -> Path:
    """A folder with the four files; downloads them to the cache when none has them and it may.

    NETTRIM_OFFLINE=1, or download=False, forbids that. Raises DataError that says which files to put where,
    MissingExtraError when a download needs pooch and it is not installed.
    """
    given = os.environ.get(VARIABLE)
    places = [Path(given), Path(given) / "mnist"] if given else []
    places.append(cache_folder() / "mnist")
    for place in places:
        if all((place / f"{name}.gz").is_file() for name in FILES):
            return place
    reason = "the download is switched off"
    if download and os.environ.get("NETTRIM_OFFLINE", "0") in ("", "0"):
        try:
            return _download(places[-1])
        except (OSError, ValueError) as error:  # pooch raises what the network raises, and ValueError for a checksum
            reason = f"no mirror could be read ({error})"
    names = ", ".join(f"{name}.gz" for name in FILES)
    cure = f"Put {names} into {places[-1]}, or into a folder that the environment variable {VARIABLE} names."
    raise DataError(
        should("MNIST", "in one of " + ", ".join(map(repr, map(str, places))), f"no such files; {reason}", cure)
    )


def load_mnist(download: bool = True) -> Images:
    """The 60,000 training and 10,000 test images, checked. Raises as `find_mnist`, and DataError for wrong content."""
    folder = find_mnist(download)
    arrays = {name: read_idx(folder / f"{name}.gz", checksum) for name, checksum in FILES.items()}
    train, train_labels, test, test_labels = (arrays[name] for name in FILES)
    pixels = train[0].size
    return Images(
        Source("MNIST"),
        torch.from_numpy(train.reshape(-1, pixels).astype(np.float32) / 255),
        torch.from_numpy(train_labels.astype(np.int64)),
        torch.from_numpy(test.reshape(-1, pixels).astype(np.float32) / 255),
        torch.from_numpy(test_labels.astype(np.int64)),
        side=train.shape[1],
    )


def has_mnist() -> bool:
    """Whether the files are there already; nothing is downloaded."""
    try:
        find_mnist(download=False)
    except DataError:
        return False
    return True


def read_idx(path: Path, checksum: str | None = None) -> np.ndarray:
    """An IDX file of bytes, gzip-compressed. Raises DataError for one that is damaged or of another content."""
    try:
        with gzip.open(path, "rb") as stream:
            content = stream.read(_LARGEST)
        if checksum is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != checksum:
            cure = "Delete it, and get the original."
            raise DataError(should(path.name, "the original MNIST file", "another content", cure))
        zero, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        if zero != 0 or kind != 8 or not 1 <= dimensions <= 4:
            raise ValueError("its header is not that of an IDX file of bytes")
        array = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
        return array.reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            should(path.name, "a whole, undamaged IDX file", f"'{path}': {error}", "Get it again.")
        ) from error


def load_digits_instead() -> Images:
    """scikit-learn's 1,797 scanned digits of 8 x 8 pixels, in a fixed random order: the stand-in for MNIST.

    Raises MissingExtraError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415  # an extra
    except ImportError as error:  # pragma: no cover - needs an installation without the extra
        raise MissingExtraError("scikit-learn", "experiments") from error
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    images = torch.from_numpy((pixels[order] / 16).astype(np.float32))
    labels = torch.from_numpy(digits[order].astype(np.int64))
    name = "scikit-learn's 8 x 8 digits, which stand in for MNIST: no number here is the paper's"
    return Images(Source(name, False), images[:1500], labels[:1500], images[1500:], labels[1500:], side=8)


def load_images(stand_in: bool = False) -> Images:
    """MNIST, or the stand-in where that is asked for or MNIST cannot be had and `stand_in` allows it."""
    if stand_in and not has_mnist():
        return load_digits_instead()
    return load_mnist()


def _download(folder: Path) -> Path:
    try:
        import pooch  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise MissingExtraError("pooch", "experiments") from error
    folder.mkdir(parents=True, exist_ok=True)
    for name, checksum in FILES.items():
        target = folder / f"{name}.gz"
        failure: Exception = ValueError("no mirror")
        for mirror in MIRRORS:
            try:
                pooch.retrieve(f"{mirror}{name}.gz", known_hash=None, fname=f"{name}.gz.part", path=folder)
                read_idx(folder / f"{name}.gz.part", checksum)
                os.replace(folder / f"{name}.gz.part", target)
                break
            except (OSError, ValueError) as error:
                (folder / f"{name}.gz.part").unlink(missing_ok=True)
                failure = error
        else:
            raise failure
    return folder
