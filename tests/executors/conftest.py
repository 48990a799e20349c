"""What the tests of all executors use."""

import pytest


class Taking:
    """An iterator over a list that may grow: it ends when the list is empty, and goes on when it no longer is."""

    def __init__(self, ready):
        self.ready = ready

    def __iter__(self):
        return self

    def __next__(self):
        if not self.ready:
            raise StopIteration
        return self.ready.pop()


@pytest.fixture
def taking():
    return Taking
