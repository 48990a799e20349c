"""One budget over many neurons, solved by the jobs of an array: the answer of one run, whichever of them are there."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from torch import nn

import nettrim
from nettrim.blocks import line, run, split
from nettrim.blocks.joint_files import JointFiles
from nettrim.executors import LocalExecutor, Shard, Unfinished

LONG = 30.0  # seconds, never waited for in full
FIRST, SECOND, LAST = "0", "2", "4"  # of the layers: two joint budgets, led by shares 1 and 2 of 2, and a small one


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(split, "_ROWS", 4)
    monkeypatch.setattr(split, "_JOINT_ROWS", 4)
    monkeypatch.setattr(line, "_POLL", 0.02)
    monkeypatch.setattr(run, "_POLL", 0.02)
    network()


@cache
def network():
    """Made once, and not by shares: they are threads here, which have their random numbers in common."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 16), nn.ReLU(), nn.Linear(16, 3))
    return model, torch.randn(40, 6)


def trimmed(checkpoint=None, executor=None, **options):
    executor = executor or LocalExecutor(1)
    return nettrim.trim(*network(), epsilon=0.2, progress=False, executor=executor, checkpoint=checkpoint, **options)


def share(folder, index, count, wait, executor=None, **options):
    """What a share ends with: a trim, or None where others are missing."""
    try:
        return trimmed(folder, Shard(index, count, wait=wait, executor=executor or LocalExecutor(1)), **options)
    except Unfinished:
        return None


class Stop(Exception):
    pass


class Dying(LocalExecutor):
    """Dies after so many results."""

    def __init__(self, after):
        super().__init__(1)
        self.left = after

    def map(self, function, items):
        for result in super().map(function, items):
            if not self.left:
                raise Stop
            self.left -= 1
            yield result


def steps(folder):
    """What the log says of parts."""
    log = folder / "log.jsonl"
    found = [json.loads(text) for text in log.read_text().splitlines()] if log.exists() else []
    return [about for about in found if "part" in about]


def finished(folder):
    """The layers that are done; nothing else is left of them."""
    return {path.name.split("_")[0] for path in folder.glob("*.block") if "_of_" not in path.name}


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
@pytest.mark.parametrize("count", [2, 3])
def test_shares_that_run_together_take_it_in_parts(tmp_path, scheme, count, same):
    with ThreadPoolExecutor(count) as pool:
        jobs = [pool.submit(share, tmp_path, index, count, LONG, scheme=scheme) for index in range(1, count + 1)]
        found = [job.result() for job in jobs]
    whole = trimmed(scheme=scheme)
    assert all(same(whole, one) for one in found)
    done = [(about["layer"], about["part"], about["round"]) for about in steps(tmp_path)]
    assert len(done) == len(set(done))  # nothing was solved twice
    workers = {(about["layer"], about["part"], about["worker"]) for about in steps(tmp_path)}
    assert len(workers) == 9  # a part stays with its share
    assert len({worker for _, _, worker in workers}) == count
    assert len(list(tmp_path.glob("*.block"))) == 3


def test_who_leads_takes_over_what_others_do_not_bring(tmp_path, same):
    """Share 2 dies with its parts half done: share 1 brings its own layer to an end, and any run does the rest."""
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(share, tmp_path, 1, 2, 2.0)
        with pytest.raises(Stop):
            share(tmp_path, 2, 2, LONG, Dying(4))
        assert job.result() is None
    assert FIRST in finished(tmp_path)
    assert SECOND not in finished(tmp_path)
    before = len(steps(tmp_path))
    assert same(trimmed(), trimmed(tmp_path))
    done = [(about["layer"], about["part"], about["round"]) for about in steps(tmp_path)]
    assert before < len(done) == len(set(done))  # what share 2 had done was taken up, twice


def test_who_leads_takes_what_is_there_when_it_takes_over(tmp_path, same, monkeypatch):
    """It never sees that another share answers, and finds the answers when it makes the parts its own."""
    inner = JointFiles.look
    monkeypatch.setattr(JointFiles, "look", lambda self, block: not block.lead and inner(self, block))
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(share, tmp_path, index, 2, 3.0) for index in (1, 2)]
        found = [job.result() for job in jobs]
    assert all(same(trimmed(), one) for one in found)
    first = [about for about in steps(tmp_path) if about["layer"] == FIRST and about["round"] == 1]
    assert len({about["worker"] for about in first}) == 2
    assert sorted(about["part"] for about in first) == list(range(5))


def test_the_living_go_on_with_their_parts_when_one_dies(tmp_path, same):
    """Of three shares: the lead takes over what the dead one had, and the other one keeps its own."""
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(share, tmp_path, index, 3, 3.0) for index in (1, 3)]
        with pytest.raises(Stop):
            share(tmp_path, 2, 3, LONG, Dying(1))
        found = [job.result() for job in jobs]
    assert all(same(trimmed(), one) for one in found)
    ends = {about["part"]: about["worker"] for about in steps(tmp_path) if about["layer"] == FIRST}
    assert ends[0] == ends[1] == ends[3] == ends[4] != ends[2]


def test_a_share_that_does_not_lead_does_nothing_alone(tmp_path, same):
    for wait in (0.0, 0.6):
        assert share(tmp_path, 2, 3, wait) is None  # it leads none of the joint budgets
        assert not steps(tmp_path)
    assert share(tmp_path, 1, 3, 0.0) is None
    assert same(trimmed(), share(tmp_path, 3, 3, 0.0))


@pytest.mark.parametrize("dead", [1, 2])
def test_a_share_that_died_goes_on_where_it_was(tmp_path, dead, same):
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(share, tmp_path, 3 - dead, 2, LONG)
        for after in (3, 5):
            with pytest.raises(Stop):
                share(tmp_path, dead, 2, LONG, Dying(after))
        found = [share(tmp_path, dead, 2, LONG), job.result()]
    assert all(same(trimmed(), one) for one in found)
    done = [(about["layer"], about["part"], about["round"]) for about in steps(tmp_path)]
    assert len(done) == len(set(done))


def test_a_part_that_cannot_be_read_is_solved_again(tmp_path, same, monkeypatch):
    """Its numbers can still be read, so its damage shows only when all is put together."""
    inner, damaged = JointFiles.keep_part, []

    def keep(self, block, part):
        inner(self, block, part)
        if part.landed is not None and block.task.name == FIRST and part.rows.start == 3:
            (path,) = tmp_path.glob(f"{FIRST}_3-5_of_*.block")
            path.write_bytes(path.read_bytes()[:-3])
            damaged.append(path)

    monkeypatch.setattr(JointFiles, "keep_part", keep)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(share, tmp_path, index, 2, LONG) for index in (1, 2)]
        found = [job.result() for job in jobs]
    assert len(damaged) == 2
    assert all(same(trimmed(), one) for one in found)


def test_parts_of_other_inputs_are_not_taken(tmp_path, same, monkeypatch):
    """As when another kind of processor computes them to other last digits: each share then waits in vain."""
    with monkeypatch.context() as patch:
        patch.setattr("nettrim.blocks.run.digest_task", lambda task: "another")
        with pytest.raises(Stop):
            share(tmp_path, 1, 2, 0.6, Dying(4))
    assert share(tmp_path, 2, 2, 0.6) is None
    first = [about for about in steps(tmp_path) if about["layer"] == FIRST]
    assert {about["part"] for about in first} <= {0, 2, 4}  # share 2 did not follow the other course
    assert same(trimmed(), trimmed(tmp_path))
