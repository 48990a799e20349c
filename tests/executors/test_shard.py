"""A share of an array: what says which it is, and words that do not."""

import pytest

from nettrim.errors import InputError
from nettrim.executors import LocalExecutor, Shard


def test_a_share_is_read_from_its_words():
    share = Shard.parse(" 2/3 ", wait=5)
    assert (share.index, share.count, share.wait) == (2, 3, 5.0)
    assert [number for number in range(7) if share.mine(number)] == [1, 4]


@pytest.mark.parametrize("text", [None, 5, b"1/2", "", "1", "1/2/3", "0/2", "3/2", "-1/2", "1.0/2", "١/٢"], ids=repr)
def test_other_words_are_refused(text):
    with pytest.raises(InputError, match="`shard` should be i/n"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("index", "count"), [("1", 2), (1.5, 2), (True, 2), (1, True), (1, "2"), (1, 2.0), (None, 2), (0, 2), (3, 2)]
)
def test_shares_are_whole_numbers(index, count):
    with pytest.raises(InputError) as caught:
        Shard(index, count)
    assert str(caught.value) == f"`shard` should be i/n with whole numbers 1 <= i <= n. Got {index!r}/{count!r}."


@pytest.mark.parametrize("wait", ["x", None, True, -1, float("nan")], ids=repr)
def test_a_wait_is_a_number_of_seconds(wait):
    with pytest.raises(InputError, match="`wait` should be a number of seconds >= 0. Got"):
        Shard(1, 2, wait=wait)


@pytest.mark.parametrize("executor", ["ray", 4, LocalExecutor], ids=repr)
def test_its_own_executor_is_one(executor):
    with pytest.raises(InputError, match="`executor` should be one of `nettrim.executors`, or None. Got"):
        Shard(1, 2, executor=executor)
