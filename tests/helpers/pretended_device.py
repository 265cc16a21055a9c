"""A second device for tests: tensors that say they are there and compute on the CPU; an operation that mixes them with tensors of the CPU fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("lazy:0")
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Pretended(torch.Tensor):
    """Holds its values on the CPU (`values`) and says DEVICE."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype, device=DEVICE
        )
        made.values = values
        return made

    def tolist(self) -> Any:
        """As on any device, the values come back."""
        return self.values.tolist()

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        """As of any tensor; what is assigned becomes the values."""
        return self.detach()

    @data.setter
    def data(self, other: Pretended) -> None:
        self.values = other.values

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, torch.Tensor)]
    there = [isinstance(tensor, Pretended) for tensor in tensors]
    target = kwargs.get("device")
    if func not in _MOVES:
        strangers = [tensor for tensor, is_there in zip(tensors, there, strict=True) if not is_there and tensor.dim()]
        if any(there) and strangers:
            raise RuntimeError(f"{func}: tensors on two devices, one of shape {tuple(strangers[0].shape)} is on the CPU")
    wanted = torch.device(target).type == "lazy" if target is not None else any(there)
    if func is torch.ops.aten.copy_.default:
        wanted = there[0]
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map_only(Pretended, lambda tensor: tensor.values, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    given = {id(tensor.values): tensor for tensor in tensors if isinstance(tensor, Pretended)}
    if func is torch.ops.aten._to_copy.default and not wanted:
        return result
    return tree_map_only(torch.Tensor, lambda t: given.get(id(t)) if id(t) in given else Pretended(t), result) if wanted else result


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):  # under inference_mode these arrive whole
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return run(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """torch.tensor, and a list as index, ask the device itself: make the values here, and move them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.__getitem__ and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]).to(args[0].device))
        return func(*args, **kwargs)


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Inside, `tensor.to(DEVICE)` and factories with `device=DEVICE` give Pretended tensors, and torch's fused optimizers take them."""
    fused = optimizer._get_fused_kernels_supported_devices
    with _Literals(), _Mode(), mock.patch.object(optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused(), DEVICE.type]):
        yield DEVICE
