"""Samples in memory and in files."""

import copy
import gc

import numpy as np
import torch

from nettrim.models.store import Memory, Rows, SampleStore


def filled(store, dtype=torch.float32):
    writer = store.writer("inputs")
    parts = [torch.randn(n, 2, 3).to(dtype) for n in (4, 1, 7)]
    for part in parts:
        writer.append(part)
    return torch.cat(parts), writer.finish()


def files(folder):
    return list(folder.rglob("*.npy"))


def test_memory_and_files_hold_the_same(tmp_path):
    for budget in (None, 10**6, 100, 0):
        for dtype in (torch.float32, torch.float64):
            store = SampleStore(Memory(budget), tmp_path)
            expected, got = filled(store, dtype)
            assert torch.equal(expected, got) and got.dtype == dtype
            assert bool(files(tmp_path)) == (budget in (100, 0))
            store.close()


def test_files_are_never_written_through(tmp_path):
    store = SampleStore(Memory(0), tmp_path)
    expected, got = filled(store)
    (path,) = files(tmp_path)
    got.zero_()
    assert np.array_equal(np.load(path, mmap_mode="r"), expected.numpy())


def test_files_go_with_the_store(tmp_path):
    store = SampleStore(Memory(0), tmp_path)
    filled(store)
    assert len(list(tmp_path.iterdir())) == 1
    store.close()
    store.close()
    assert list(tmp_path.iterdir()) == []
    store = SampleStore(Memory(0), tmp_path)
    expected, got = filled(store)
    del store
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(expected, got)


def test_the_budget_is_for_all_tensors_together(tmp_path):
    store = SampleStore(Memory(250), tmp_path)
    first, second = store.writer("a"), store.writer("layer/b")
    first.append(torch.zeros(50))
    second.append(torch.zeros(50))
    assert [path.name for path in files(tmp_path)] == ["1-layer_b.npy"] and store.memory.used == 200


def test_rows_in_slabs_are_the_rows(monkeypatch):
    monkeypatch.setattr("nettrim.models.store._SLAB", 64)
    for shape in ((), (3,), (2, 2), (0,)):
        rows, given = Rows(), [torch.randn(count, *shape) for count in (1, 5, 0, 2, 40, 3)]
        for part in given:
            rows.append(part)
        assert torch.equal(torch.cat(rows.parts()), torch.cat(given))


def test_what_nobody_refers_to_any_more_is_free_for_others(tmp_path):
    """One ledger for all stores of a network, however many captures there are; views keep their memory."""
    memory, size = Memory(500), 12 * 2 * 3 * 4
    stores = SampleStore(memory, tmp_path), SampleStore(memory, tmp_path)
    _, first = filled(stores[0])
    assert not files(tmp_path)
    _, second = filled(stores[1])
    assert memory.used == size and files(tmp_path)
    view = first[1:].transpose(0, 1)
    del first
    gc.collect()
    assert memory.used == size
    del view, second
    gc.collect()
    assert memory.used == 0


def test_joined_rows_are_aligned_and_need_no_second_copy():
    for dtype in (torch.float32, torch.float64):
        memory, parts = Memory(), [torch.randn(n, 3, 5).to(dtype) for n in (2, 0, 9)]
        expected = torch.cat(parts)
        whole = memory.joined(parts)
        assert torch.equal(whole, expected) and whole.data_ptr() % 64 == 0 and not parts


def test_memory_in_another_process_starts_anew():
    memory = Memory(100)
    assert memory.take(60) and not memory.take(60)
    twin = copy.copy(memory)  # by what pickles it, too
    assert (twin.budget, twin.used) == (100, 0)
