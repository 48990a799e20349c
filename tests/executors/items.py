"""Items and functions that the tests of executors send to workers."""

import os
import signal
from dataclasses import dataclass, replace

from nettrim.executors.base import Held


@dataclass(frozen=True)
class Adding:
    """An item that carries what is held; `smaller` halves it."""

    held: Held | None
    more: float
    size: int = 8

    def smaller(self):
        return replace(self, size=self.size // 2) if self.size > 1 else None


def add(item):
    held = Held({"sum": item.held.value["sum"] + item.more})
    return float(held.value["sum"].sum()), held


def picky(item):
    if item.size > 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item.size
