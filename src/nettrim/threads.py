"""How many threads torch uses, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """A fixed number of torch threads (None: the present one), put back afterwards."""
    before = torch.get_num_threads()
    count = before if count is None else count
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
