"""Threads of torch, for a while."""

import pytest
import torch

from nettrim.threads import torch_threads


def test_they_are_put_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1) as count:
        assert torch.get_num_threads() == count == before + 1
    assert torch.get_num_threads() == before
    with torch_threads(None) as count:
        assert count == before
    with pytest.raises(RuntimeError), torch_threads(before + 1):
        raise RuntimeError
    assert torch.get_num_threads() == before
