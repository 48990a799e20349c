"""Values without their tensors and back, also on memory that nobody may write to."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from nettrim.executors.swap import Slot, put_back, take_out, to_array


@dataclass(frozen=True)
class Holder:
    tensor: torch.Tensor
    other: object = None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3)])
def test_any_tensor_comes_back_to_the_bit(dtype, shape):
    tensor = (torch.randn(shape) * 3).to(dtype)
    value = {"a": [Holder(tensor, (tensor.T if tensor.ndim == 2 else tensor, "text", None))], "b": 3}
    skeleton, arrays = take_out(value)
    assert all(isinstance(array, np.ndarray) for array in arrays)
    back = put_back(skeleton, arrays, copies=True)
    holder = back["a"][0]
    assert holder.tensor.dtype == dtype
    assert torch.equal(holder.tensor, tensor)
    assert torch.equal(holder.other[0], value["a"][0].other[0])
    assert holder.other[1:] == ("text", None)
    assert value["a"][0].tensor is tensor  # the original is not touched


def test_one_tensor_is_carried_once_and_copies_are_apart():
    tensor = torch.randn(3)
    skeleton, arrays = take_out([tensor, tensor])
    assert len(arrays) == 1
    one, two = put_back(skeleton, arrays, copies=True)
    assert one.data_ptr() == two.data_ptr() != tensor.data_ptr()


def test_views_of_shared_memory_are_views_again():
    whole = torch.arange(12.0).reshape(3, 4)
    part = whole[:, :3]

    def find(tensor):
        return Slot(0, tensor.dtype, True, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))

    skeleton, arrays = take_out([whole, part, whole[1:, 2]], find)
    assert arrays == ()
    memory = to_array(whole).reshape(-1)
    back = put_back(skeleton, arrays, [memory])
    assert all(torch.equal(a, b) for a, b in zip(back, [whole, part, whole[1:, 2]], strict=True))
    assert back[1].data_ptr() == memory.ctypes.data


READ_ONLY = """
import sys, numpy as np, torch
from nettrim.blocks.split import parts_of
from nettrim.blocks.work import LayerWork
from nettrim.executors.swap import put_back, take_out
from nettrim.layerwise import LayerTask
from nettrim.models.base import Layer
from nettrim.recipe import Recipe
folder, constraint = sys.argv[1:]
torch.manual_seed(0)
layer = Layer("fc", "Linear", (9, 6), "relu", torch.randn(9, 6), torch.randn(9))
recipe = Recipe(epsilon=.2, budget="neuron", constraint=constraint)
task = LayerTask(layer, torch.randn(1, 60, 6), None, torch.randn(60, 9), recipe)
(cut,) = parts_of(task, (range(0, 4), range(4, 9)), [0], lambda tensor: tensor)
(whole,) = parts_of(task, (range(9),), [0], lambda tensor: tensor)
for number, part in enumerate((cut, whole)):
    skeleton, arrays = take_out(part)
    mapped = []
    for place, array in enumerate(arrays):
        path = f"{folder}/{number}-{place}.npy"
        np.save(path, array)
        mapped.append(np.load(path, mmap_mode="r"))
    if number == 0 and constraint == "write":
        put_back(skeleton, mapped).task.inputs.add_(1)
    outcome = LayerWork().part(put_back(skeleton, mapped))
    assert torch.equal(outcome.weight, LayerWork().part(part).weight)
print("unharmed")
"""


@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_solving_never_writes_into_its_inputs(tmp_path, constraint):
    """A write to a read-only map ends the process with a segmentation fault."""
    command = [sys.executable, "-c", READ_ONLY, str(tmp_path), constraint]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (run.returncode, run.stdout) == (0, "unharmed\n"), run.stderr


def test_a_write_would_be_noticed(tmp_path):
    code = READ_ONLY.replace('"write"', '"distance"')
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path), "distance"], capture_output=True, check=False)
    assert run.returncode < 0  # a signal
