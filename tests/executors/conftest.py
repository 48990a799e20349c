"""What the tests of all executors use; what they send to workers stands in `items`, which workers import, too."""

import os
import sys
from pathlib import Path

import pytest

_HERE = str(Path(__file__).resolve().parent)
sys.path.insert(0, _HERE)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_HERE, os.environ.get("PYTHONPATH")]))


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
