"""A device without numbers that refuses what would slow a GPU down or fail on it.

It is torch's `meta`, on which every operation runs by shapes alone, so the code takes the paths of a GPU without one.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
aten = torch.ops.aten
ASKS = (
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__,
)  # fmt: skip
READS_VALUES = (
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.repeat_interleave,
    aten._unique2, aten.bincount,
)  # fmt: skip
"""What has a result on the host, or of a size that depends on values."""
INDEXES = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
COPIES = (aten._to_copy, aten.copy_)
GROWS = (
    aten.exp, aten.exp_, aten.exp2, aten.exp2_, aten.sum, aten.cumsum, aten.logsumexp, aten.logaddexp, aten.square,
    aten.square_, aten._log_softmax,
)  # fmt: skip
"""What leaves the range or the precision of half a float32; the body of a model has no need of them."""
HALVES = (torch.float16, torch.bfloat16)


class Waits(AssertionError):
    """The host would wait for all work queued on the device."""


class OnTheWrongDevice(AssertionError):
    """Operands on two devices."""


class InHalfPrecision(AssertionError):
    """A sum, or what becomes one, in half precision."""


class _Operations(TorchDispatchMode):
    """Checks what reaches a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket
        with self:  # under inference_mode operations arrive whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name is aten.empty and kwargs.get("pin_memory"):
            return func(*args, **kwargs | {"pin_memory": False})  # which only a GPU could pin
        places = {t.device.type for t in tensors} | {torch.device(to).type for to in [kwargs.get("device")] if to}
        if name in COPIES and len(places) > 1:
            if not (kwargs.get("non_blocking") or any(a is True for a in args)):
                raise Waits(f"{func}: a copy between host and device that is not asynchronous")
            return args[0] if name is aten.copy_ else func(*args, **kwargs)
        if any(t.device == DEVICE for t in tensors):
            self._check(func, name, tensors, args)
        return func(*args, **kwargs)

    @staticmethod
    def _check(func: Any, name: Any, tensors: list[Tensor], args: Any) -> None:
        if any(t.device != DEVICE and t.dim() for t in tensors):
            raise OnTheWrongDevice(f"{func} of tensors on {[str(t.device) for t in tensors]}")
        if name in READS_VALUES:
            raise Waits(f"{func}: the host needs to know values")
        if name in INDEXES and any(t.dtype == torch.bool for t in args[1] if t is not None):
            raise Waits(f"{func}: a mask as index")
        if name in GROWS and any(t.dtype in HALVES for t in tensors):
            raise InHalfPrecision(f"{func} of {[str(t.dtype) for t in tensors]}")


class _Calls(TorchFunctionMode):
    """Checks what takes numbers of Python to a device, which is a copy that waits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ASKS and args[0].device == DEVICE:
            raise Waits(f"{func.__name__}: the host needs to know values")
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            raise Waits("a tensor of the host's numbers on the device")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device == DEVICE:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list | np.ndarray) for part in index):
                raise Waits("a list as index")
        return func(*args, **kwargs)


@contextmanager
def disciplined() -> Iterator[None]:
    """Within the block raise Waits, OnTheWrongDevice or InHalfPrecision for any such operation on `DEVICE`."""
    autocast = torch.autocast

    def without_the_device(kind: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if kind == DEVICE.type else autocast(kind, *args, **kwargs)  # torch knows none for it

    with pytest.MonkeyPatch.context() as patch, _Calls(), _Operations():
        patch.setattr(torch, "autocast", without_the_device)
        yield
