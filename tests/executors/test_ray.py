"""A real Ray cluster of two machines' worth of processes: the same answers, failures that are said, a machine lost."""

import importlib.util
import os
import time
from types import SimpleNamespace

import pytest
import torch
from items import Adding, add, picky
from torch import nn

import nettrim
from nettrim.blocks import split
from nettrim.errors import InputError
from nettrim.executors import ClusterError, LocalExecutor, Ray, ray_cluster
from nettrim.executors.ray_cluster import _import_ray

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray"),
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    _import_ray(local=True)
    from ray.cluster_utils import Cluster  # noqa: PLC0415  # an extra

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes(timeout=60)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def ray(cluster):
    with Ray(cluster.address, timeout=120) as executor:
        yield executor


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(split, "_ROWS", 4)
    monkeypatch.setattr(split, "_JOINT_ROWS", 7)


def trimmed(executor, checkpoint=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 6))
    options = {"epsilon": 0.2, "budget": "neuron", "progress": False, **options}
    batches = list(torch.randn(200, 12).split(25))
    return nettrim.trim(model, batches, executor=executor, checkpoint=checkpoint, **options)


def test_two_machines_give_the_answer_of_one_thread(ray, small_blocks, tmp_path, same):
    assert ray.workers == 2
    for options in ({}, {"scheme": "cascade"}, {"budget": "layer"}):
        folder = tmp_path / "-".join(options)
        assert same(trimmed(LocalExecutor(1), **options), trimmed(ray, folder, **options))
    workers = {line.rsplit('"worker"')[1] for line in (tmp_path / "log.jsonl").read_text().splitlines()}
    assert len(workers) >= 2


def test_workers_capture_their_share_of_the_batches(cluster, small_blocks, same):
    with Ray(cluster.address, timeout=120, captures=True) as executor:
        for scheme in ("parallel", "cascade"):
            assert same(trimmed(LocalExecutor(1), scheme=scheme), trimmed(executor, scheme=scheme))


def test_shared_tensors_are_put_once_and_let_go(ray):
    tensor = ray.share(torch.arange(200000.0).reshape(2, -1))
    assert ray.share(tensor) is tensor
    assert len(ray._shared) == 1
    views = [tensor, tensor[1], tensor[:, :3]]
    results = dict(ray.map(torch.sum, views))
    assert [float(results[place]) for place in range(3)] == [float(view.sum()) for view in views]
    del tensor, views
    assert not ray._shared


def test_what_is_held_stays_in_the_object_store(ray, monkeypatch):
    """The first value is put once, the others are left where they were made: the driver sees the sums alone."""
    start = torch.ones(300000)
    held, total, seen = ray.hold({"sum": ray.share(start)}), 0.0, 0
    inner = ray_cluster.put_back

    def spy(skeleton, arrays, *more, **options):
        nonlocal seen
        seen += sum(array.nbytes for array in arrays)
        return inner(skeleton, arrays, *more, **options)

    monkeypatch.setattr(ray_cluster, "put_back", spy)
    for more in (1.0, 2.0, 3.0):
        ((_, (total, held)),) = ray.map(add, [Adding(held, more)])
    assert total == 300000 * 7
    assert seen == 0
    assert torch.equal(ray.fetch(held)["sum"], start + 6)
    assert ray.fetch(ray.hold([start]))[0].data_ptr() != start.data_ptr()


def test_items_may_come_of_results(ray, taking):
    """An iterator that had none is asked again after a result: here each item but the first comes of another's."""
    ready, seen = [1], []
    for _, result in ray.map(abs, taking(ready)):
        seen.append(result)
        ready.extend(child for child in (2 * result, 2 * result + 1) if child < 8)
    assert sorted(seen) == list(range(1, 8))


def refuse(item):
    if item.size > 2:
        raise MemoryError("too large")
    return item.size


@pytest.mark.parametrize("function", [picky, refuse])
def test_an_item_too_large_for_a_worker_is_run_again_in_smaller_pieces(cluster, function):
    with Ray(cluster.address, retries=0, timeout=120) as executor:
        assert dict(executor.map(function, [Adding(None, 0.0), Adding(None, 0.0, 1)])) == {0: 2, 1: 1}


def test_a_failure_is_raised_with_the_remote_traceback(ray):
    with pytest.raises(torch.linalg.LinAlgError) as caught:
        list(ray.map(torch.linalg.cholesky, [torch.eye(2), -torch.eye(2)]))
    notes = "\n".join(caught.value.__notes__)
    assert "'item 1'" in notes
    assert "On the worker:" in notes
    assert "parcel.py" in notes


def test_what_no_machine_has_is_refused_at_once(cluster):
    with Ray(cluster.address, gpus=2) as executor, pytest.raises(InputError, match="`gpus` should be at most the 0"):
        list(executor.map(abs, [1]))
    with Ray(cluster.address, cpus=2) as executor, pytest.raises(InputError, match="`cpus` should be at most the 1"):
        list(executor.map(abs, [1]))


def test_every_wait_ends_and_says_what_it_waited_for(cluster):
    started = time.monotonic()
    with Ray(cluster.address, timeout=1) as executor, pytest.raises(ClusterError, match="none of 'item 0'"):
        list(executor.map(time.sleep, [60]))
    assert time.monotonic() - started < 30


def test_a_worker_that_dies_again_and_again_is_an_error(cluster):
    with Ray(cluster.address, retries=1) as executor, pytest.raises(ClusterError, match="WorkerCrashed.*'item 0'"):
        list(executor.map(os._exit, [1]))


@pytest.mark.parametrize("budget", ["neuron", "layer"])
def test_a_lost_machine_is_made_up_for(cluster, small_blocks, budget, same):
    """SIGKILL to all processes of one machine after the sixth finished block: what it held is computed again."""
    expected = trimmed(LocalExecutor(1), budget=budget)
    extra = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes(timeout=60)
    finished = 0

    class Losing(Ray):
        def map(self, function, items):
            nonlocal finished
            for result in super().map(function, items):
                finished += 1
                if finished == 6:
                    cluster.remove_node(extra, allow_graceful=False)
                yield result

    with Losing(cluster.address, timeout=120) as executor:
        assert executor.workers == 4
        assert same(expected, trimmed(executor, budget=budget))
    assert finished > 7


def test_a_cluster_of_its_own_asks_for_a_token():
    with Ray(workers=1) as executor:
        assert executor.workers == 1
        assert dict(executor.map(abs, [-3])) == {0: 3}
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize(
    "options",
    [
        {"cpus": -1}, {"cpus": True}, {"gpus": float("nan")}, {"gpus": "1"}, {"workers": 0}, {"workers": True},
        {"workers": 1.5}, {"timeout": 0}, {"timeout": "a"}, {"timeout": True}, {"retries": "x"}, {"retries": 1.5},
        {"retries": -1}, {"retries": False}, {"address": 5},
    ],
)  # fmt: skip
def test_options_are_checked(options):
    with pytest.raises(InputError, match=f"`{next(iter(options))}` should be"):
        Ray(**options)


def test_the_command_lines_spelling():
    assert Ray.parse("ray")._address is None
    assert Ray.parse("ray://10.0.0.1:6379")._address == "10.0.0.1:6379"
    for text in ("ray://", "dask", "rays", None, 5):
        with pytest.raises(InputError, match="`executor` should be"):
            Ray.parse(text)


@pytest.mark.parametrize("own", [True, False], ids=["of its own", "of others"])
def test_ctrl_c_cancels_what_runs_on_a_cluster_that_goes_on(monkeypatch, own):
    """One of its own ends with all its tasks: to cancel one just as it finishes may abort this process."""
    executor, cancelled = Ray(), []
    node = {"Alive": True, "Resources": {"CPU": 2.0}}
    executor._ray = SimpleNamespace(
        is_initialized=lambda: True,
        nodes=lambda: [node],
        cancel=lambda reference, force: cancelled.append(reference),
    )
    executor._task = SimpleNamespace(remote=lambda *_: (object(), object()))
    executor._own = own

    def pressed(_pending):
        raise KeyboardInterrupt

    monkeypatch.setattr(executor, "_wait", pressed)
    with pytest.raises(KeyboardInterrupt):
        next(executor.map(len, ["a", "b", "c"]))
    assert len(cancelled) == (0 if own else 3)
