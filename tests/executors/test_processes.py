"""Processes of this machine: the answers of one thread, shared arrays in files, failures that are said."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from items import Adding, add, picky
from torch import nn

import nettrim
from nettrim.blocks import split
from nettrim.errors import InputError
from nettrim.executors import ClusterError, LocalExecutor, Processes

pytestmark = pytest.mark.skipif(importlib.util.find_spec("loky") is None, reason="no loky")


@pytest.fixture(scope="module")
def processes():
    with Processes(2) as executor:
        yield executor


def trimmed(executor, checkpoint=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 6))
    options = {"epsilon": 0.2, "budget": "neuron", "progress": False, **options}
    return nettrim.trim(model, torch.randn(200, 12), executor=executor, checkpoint=checkpoint, **options)


@pytest.mark.parametrize("options", [{}, {"scheme": "cascade"}, {"budget": "layer"}], ids=str)
def test_the_answer_is_that_of_one_thread(processes, monkeypatch, tmp_path, same, options):
    monkeypatch.setattr(split, "_ROWS", 4)
    monkeypatch.setattr(split, "_JOINT_ROWS", 7)
    assert same(trimmed(LocalExecutor(1), **options), trimmed(processes, tmp_path, **options))
    assert not processes._shared
    assert not any(path.stat().st_size > 2000 for path in Path(processes._folder).iterdir())  # no samples are left


def test_shared_tensors_are_written_once_and_let_go(processes):
    tensor = processes.share(torch.arange(200000.0).reshape(2, -1))
    assert processes.share(tensor) is tensor
    (array,) = processes._shared.values()
    assert Path(array.path).stat().st_size == 800000
    views = [tensor, tensor[1], tensor[:, :3]]
    results = dict(processes.map(torch.sum, views))
    assert [float(results[place]) for place in range(3)] == [float(view.sum()) for view in views]
    del tensor, views
    assert not processes._shared
    assert not Path(array.path).exists()


def test_what_is_held_goes_from_worker_to_worker(processes):
    start = torch.ones(3000)
    held, total = processes.hold({"sum": processes.share(start)}), 0.0
    for more in (1.0, 2.0, 3.0):
        ((_, (total, held)),) = processes.map(add, [Adding(held, more)])
    assert total == 3000 * 7
    assert torch.equal(processes.fetch(held)["sum"], start + 6)
    (array,) = held.value.reference.arrays
    path = Path(array.path)
    assert path.exists()
    del held
    assert not path.exists()


def test_empty_arrays_and_flags_are_held_too(processes):
    value = {
        "none": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    back = processes.fetch(processes.hold(value))
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in value.items())


DRIVER = """
import sys, time
from nettrim.executors import Processes
executor = Processes(1)
for _, worker in executor.map(eval, ["__import__('os').getpid()"]):
    print(worker, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_when_their_driver_is_killed():
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", DRIVER], **quiet) as driver:
        worker = int(driver.stdout.readline())
        assert alive(worker)
        driver.kill()
    limit = time.monotonic() + 30
    while time.monotonic() < limit and alive(worker):
        time.sleep(0.2)
    assert not alive(worker)


def alive(process):
    """Whether it runs; one that ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_items_may_come_of_results(processes, taking):
    ready, seen = [1], []
    for _, result in processes.map(abs, taking(ready)):
        seen.append(result)
        ready.extend(child for child in (2 * result, 2 * result + 1) if child < 8)
    assert sorted(seen) == list(range(1, 8))


def test_an_item_whose_worker_is_killed_is_run_again_in_smaller_pieces():
    with Processes(1) as executor:
        assert dict(executor.map(picky, [Adding(None, 0.0), Adding(None, 0.0, 1)])) == {0: 2, 1: 1}


def test_workers_that_are_killed_again_and_again_are_an_error():
    with Processes(1) as executor, pytest.raises(ClusterError, match="killed 3 times during 'item 0'"):
        list(executor.map(os._exit, [1]))


def test_a_worker_that_is_killed_while_it_waits_is_replaced():
    with Processes(2) as executor:
        assert dict(executor.map(abs, [-1])) == {0: 1}
        lose_a_worker(executor)
        assert dict(executor.map(abs, [-1, -2, -3])) == {0: 1, 1: 2, 2: 3}


def test_items_at_work_are_sent_again_where_the_next_finds_a_worker_killed():
    def items(executor):
        yield 1.0
        lose_a_worker(executor)
        yield 0.0

    with Processes(2) as executor:
        assert dict(executor.map(time.sleep, items(executor))) == {0: None, 1: None}


def lose_a_worker(executor):
    """Kill one, and wait until its pool has seen that."""
    os.kill(next(iter(executor._pool._processes)), signal.SIGKILL)
    limit = time.monotonic() + 30
    while executor._pool._flags.broken is None and time.monotonic() < limit:
        time.sleep(0.05)
    assert executor._pool._flags.broken is not None


def test_a_failure_names_the_item_and_others_can_follow():
    with Processes(2) as executor:
        with pytest.raises(torch.linalg.LinAlgError) as caught:
            list(executor.map(torch.linalg.cholesky, [torch.eye(2), -torch.eye(2)]))
        assert "'item 1'" in caught.value.__notes__[0]
        assert dict(executor.map(abs, [-3])) == {0: 3}


def test_nothing_stays_behind(tmp_path):
    executor = Processes(1, folder=str(tmp_path))
    kept = executor.share(torch.ones(5))
    assert len(list(tmp_path.rglob("*"))) == 2
    executor.close()
    del executor
    assert not list(tmp_path.iterdir())
    del kept


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": True}, {"workers": "2"}, {"folder": "not/there"}, {"folder": 5}], ids=str
)
def test_options_are_checked(options):
    with pytest.raises(InputError, match=f"`{next(iter(options))}` should be"):
        Processes(**options)
