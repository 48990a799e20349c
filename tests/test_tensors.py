"""Tensors through a stream: what safetensors itself reads and writes, and nothing believed that is not there."""

import io
import json
import struct

import pytest
import torch
from safetensors.torch import load, save

from nettrim import tensors
from nettrim.tensors import read_tensors, write_tensors

TENSORS = {
    "plain": torch.randn(3, 4),
    "turned": torch.randn(5, 7).T,
    "part": torch.arange(40.0, dtype=torch.float64).reshape(4, 10)[:, 2:5],
    "half": torch.randn(3).bfloat16(),
    "flags": torch.tensor([True, False, True]),
    "number": torch.tensor(3, dtype=torch.int16),
    "empty": torch.zeros(0, 3),
}
METADATA = {"a": "b", "ü": '"'}


def written(values=TENSORS):
    stream = io.BytesIO()
    write_tensors(stream.write, values, METADATA)
    return stream.getvalue()


def same(found):
    return found.keys() == TENSORS.keys() and all(
        torch.equal(found[name], x) and found[name].dtype == x.dtype and found[name].shape == x.shape
        for name, x in TENSORS.items()
    )


def test_safetensors_reads_what_is_written(monkeypatch):
    assert same(load(written()))
    whole = written()
    monkeypatch.setattr(tensors, "_PIECE", 8)
    assert written() == whole  # in pieces of whatever size


def test_what_safetensors_writes_is_read_from_where_the_stream_stands():
    content = save({name: x.contiguous() for name, x in TENSORS.items()}, METADATA)
    for file in (content, written()):
        stream = io.BytesIO(b"before" + file)
        stream.seek(6)
        metadata, found = read_tensors(stream)
        assert metadata == METADATA and same(found)
    assert read_tensors(io.BytesIO(written({}))) == (METADATA, {})


def test_damage_is_seen():
    content = written()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])

    def changed(**change):
        text = json.dumps({**header, "plain": {**header["plain"], **change}}).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    read_tensors(io.BytesIO(changed()))
    start, stop = header["plain"]["data_offsets"]
    wrong = [
        b"", content[:5], content[:30], content[:-1], content + b"0", struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 1 << 62) + content[8:], changed(shape=[1 << 40, 1 << 40]), changed(shape=[-3, -4]),
        changed(shape=5), changed(dtype="F99"), changed(data_offsets=[start, stop + 4]), changed(data_offsets=[stop]),
        changed(data_offsets=[start + (1 << 40), stop + (1 << 40)]), changed(data_offsets=None),
    ]  # fmt: skip
    for file in wrong:
        with pytest.raises(ValueError):
            read_tensors(io.BytesIO(file))
