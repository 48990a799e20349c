"""The local executor: same results with any number of workers, lazy, and honest about failures."""

import threading
import time
from dataclasses import dataclass

import pytest
import torch

from nettrim.errors import InputError
from nettrim.executors.local import LocalExecutor


@dataclass(frozen=True)
class Job:
    name: str
    seed: int


def product(job):
    matrix = torch.randn(40, 40, generator=torch.Generator().manual_seed(job.seed))
    return matrix @ matrix.T


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_item_once_and_the_same_answer(workers):
    jobs = [Job(str(seed), seed) for seed in range(7)]
    threads = torch.get_num_threads()
    results = dict(LocalExecutor(workers).map(product, jobs))
    assert torch.get_num_threads() == threads
    assert sorted(results) == list(range(7))
    expected = dict(LocalExecutor(1).map(product, jobs))
    assert all(torch.equal(results[index], expected[index]) for index in expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_names_the_item(workers):
    def fail(job):
        if job.seed == 1:
            raise ValueError("broken")
        return job.seed

    with pytest.raises(ValueError, match="broken") as caught:
        list(LocalExecutor(workers).map(fail, [Job("first", 0), Job("second", 1)]))
    assert "'second'" in caught.value.__notes__[0]


def test_items_are_read_lazily():
    running, most, lock = 0, 0, threading.Lock()
    produced, finished = 0, 0

    def source():
        nonlocal produced
        for seed in range(6):
            produced += 1
            assert produced - finished <= 3
            yield Job(str(seed), seed)

    def work(job):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return job.seed

    for _ in LocalExecutor(2).map(work, source()):
        finished += 1
    assert finished == 6
    assert most <= 2


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_items_may_come_of_results(workers, taking):
    """An iterator that had none is asked again after a result: here each item but the first comes of another's."""
    ready, seen = [1], {}
    for index, result in LocalExecutor(workers).map(lambda item: item, taking(ready)):
        seen[index] = result
        ready.extend(child for child in (2 * result, 2 * result + 1) if child < 16)
    assert sorted(seen) == list(range(15))
    assert sorted(seen.values()) == list(range(1, 16))


def test_an_interrupt_is_raised_at_once_and_stops_the_rest():
    started = []

    def work(job):
        started.append(job.seed)
        return job.seed

    def source():
        yield Job("a", 0)
        yield Job("b", 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(LocalExecutor(2).map(work, source()))
    assert len(started) <= 2


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ValueError])
def test_running_items_are_told_to_stop(reason):
    ended = threading.Event()
    started = threading.Event()

    def work(job):
        if job.seed == 1:
            started.wait(5)
            return job.seed
        started.set()
        try:
            while True:
                time.sleep(0.001)
        finally:
            ended.set()

    def source():
        yield Job("endless", 0)
        yield Job("short", 1)
        raise reason("stop")

    with pytest.raises(reason, match="stop"):
        list(LocalExecutor(2).map(work, source()))
    assert ended.wait(5)


def test_workers_are_checked():
    assert LocalExecutor().workers >= 1
    for workers in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="`workers` should be"):
            LocalExecutor(workers)
