"""A device that is not there: tensors say that they lie on it, are computed on the CPU, and fail where a real device's
would.

`with Elsewhere():` makes `FAR` usable as a device. An operation that mixes its tensors with the CPU's raises, as do
`numpy()` on them and a CPU's tensor indexed by one of them; numbers (tensors of no dimension) may mix, and the CPU's
indices may pick from it, as everywhere in PyTorch. Since every operation is the CPU's, answers must be the same to the
bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("mps:0")  # by name alone: PyTorch asks nothing of this one before it is used
_CPU = torch.device("cpu")
_INDEXING = {"__getitem__", "__setitem__", "index_put_", "index_put"}
_PICKS = (torch.int64, torch.int32, torch.bool)


class FarTensor(Tensor):
    """A tensor that says it lies on `FAR`."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            with torch._C.DisableTorchFunctionSubclass():
                copy = self.detach().as_subclass(Tensor).clone().as_subclass(FarTensor)
                memo[id(self)] = copy.requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copy._is_param = True  # how PyTorch tells a parameter that is a subclass's
        return memo[id(self)]


class Elsewhere(TorchFunctionMode):
    """Within it `FAR` is a device that tensors can be made on and moved to."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", "")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    far = any(isinstance(tensor, FarTensor) for tensor in tensors)
    if far and name == "__get__":
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        if attribute in ("device", "is_cpu"):
            return FAR if attribute == "device" else False
    if far and name in ("numpy", "__array__"):
        raise TypeError(f"a tensor on {FAR} has no numpy()")
    if name == "_has_compatible_shallow_copy_type":
        return all(isinstance(tensor, FarTensor) == far for tensor in tensors)
    to_far, moves = far, name == "copy_"
    if name == "cpu":
        to_far, moves = False, True
    elif name in ("to", "type_as"):
        moves = True
        for place in (*args[1:], *kwargs.values()):
            if isinstance(place, Tensor):
                to_far = isinstance(place, FarTensor)
            elif isinstance(place, str | torch.device):
                to_far = torch.device(place) == FAR
        args = (args[0], *(_near(place) for place in args[1:]))
        kwargs = {key: _near(place) for key, place in kwargs.items()}
    elif kwargs.get("device") is not None:
        to_far = torch.device(kwargs["device"]) == FAR
        kwargs = {**kwargs, "device": _CPU}
        moves = name in ("tensor", "as_tensor", "asarray") or name.startswith("new_") or name.endswith("_like")
    if far and not moves:
        _refuse_mixture(name, args, tensors)
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*args, **kwargs)
    return tree_map(lambda value: _placed(value, to_far), result)


def _near(place: Any) -> Any:
    return _CPU if isinstance(place, str | torch.device) else place


def _placed(value: Any, far: bool) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, FarTensor) == far:
        return value
    return value.as_subclass(FarTensor) if far else value.as_subclass(Tensor).clone()


def _refuse_mixture(name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    indexing = name in _INDEXING
    if indexing and not isinstance(args[0], FarTensor):
        raise RuntimeError(f"{name}: a tensor on the CPU is indexed by one on {FAR}")
    stored = args[2] if indexing and len(args) > 2 else None
    for tensor in tensors:
        picks = indexing and tensor.dtype in _PICKS and tensor is not stored
        if not isinstance(tensor, FarTensor) and tensor.dim() > 0 and not picks:
            raise RuntimeError(f"{name}: a tensor of shape {tuple(tensor.shape)} lies on the CPU, others on {FAR}")
