"""Argument checks. Every error names the argument, the given value and the allowed values."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn, TypeGuard

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .. import _integers
from ..upload import upload

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INDEX = (torch.int64,)
MASK = (torch.bool,)
LARGEST_COUNT = 2**31 - 1

_CPU = torch.device("cpu")
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_INTS = (int, torch.SymInt)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_TRACING_MODES = (
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)


class Arguments:
    """The tensors of one call. They share a device, and each letter of a shape means one size.

    Checking valid arguments is overhead of every call, so each check is a bare comparison. Error
    messages are only built when an error is raised.
    """

    __slots__ = ("device", "first_name", "op", "sizes")

    def __init__(self, op: str) -> None:
        self.op = op
        self.sizes: dict[str, int] = {}
        self.first_name = ""
        self.device = _CPU

    def tensor(
        self, name: str, value: object, dims: str, dtypes: tuple[torch.dtype, ...]
    ) -> Tensor:
        """Checks that ``value`` is a tensor of shape ``dims``, such as "B N D", in ``dtypes``."""
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.op}: {name} must be a tensor, got {type(value).__name__}.")
        if value.is_nested or value.layout is not torch.strided:
            self._refuse_layout(name, value)
        if value.dtype not in dtypes:
            allowed = " or ".join(_short(dtype) for dtype in dtypes)
            raise TypeError(f"{self.op}: {name} must be {allowed}, got {_short(value.dtype)}.")
        shape, letters, sizes = value.shape, dims.split(), self.sizes
        if len(shape) != len(letters):
            raise ValueError(
                f"{self.op}: {name} must be {_layout(letters)}, got shape {list(shape)}."
            )
        for letter, size in zip(letters, shape):  # noqa: B905 - they are equally long
            if sizes.setdefault(letter, size) != size:
                raise ValueError(
                    f"{self.op}: {name} must be {_layout(letters)} with {letter} = "
                    f"{sizes[letter]}, as in previous arguments, got shape {list(shape)}."
                )
        device = value.device
        if not self.first_name:
            self.first_name, self.device = name, device
        elif device != self.device:
            raise ValueError(
                f"{self.op}: {name} must be on {self.device} like {self.first_name}, got {device}."
            )
        return value

    def _refuse_layout(self, name: str, value: Tensor) -> NoReturn:
        kind = "nested" if value.is_nested else _short(value.layout)
        raise TypeError(f"{self.op}: {name} must be a dense tensor, got a {kind} one.")

    def flag(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise TypeError(f"{self.op}: {name} must be a bool, got {type(value).__name__}.")
        return value

    def choice(self, name: str, value: object, allowed: tuple[str, ...]) -> None:
        if not isinstance(value, str) or value not in allowed:
            names = " or ".join(map(repr, allowed))
            raise ValueError(f"{self.op}: {name} must be {names}, got {value!r}.")

    def mask(self, name: str, value: object, dims: str) -> Tensor | None:
        return None if value is None else self.tensor(name, value, dims, MASK)

    def weights(self, name: str, value: object, dims: str) -> Tensor | None:
        """Checks the shape and dtype of weights of tokens and returns them as float32."""
        return None if value is None else self.tensor(name, value, dims, FLOATS).float()

    def count(self, name: str, value: object) -> int:
        """Checks that ``value`` is an int in 0..LARGEST_COUNT."""
        count = as_int(value)
        if count is None:
            raise TypeError(f"{self.op}: {name} must be an int, got {type(value).__name__}.")
        if count < 0:
            raise ValueError(f"{self.op}: {name} must be 0 or more, got {count}.")
        if count > LARGEST_COUNT:
            raise ValueError(f"{self.op}: {name} must be at most {LARGEST_COUNT}, got {count}.")
        return count

    def count_per_image(self, name: str, value: object) -> tuple[int, Tensor | None]:
        """Returns the largest count, and the counts as [B] int64 or None if they are all equal.

        The largest count is an output width, so it has to be known on the host.
        """
        if type(value) is int and 0 <= value <= LARGEST_COUNT:
            return value, None
        if as_int(value) is not None:
            return self.count(name, value), None
        if isinstance(value, Tensor):
            where = "" if may_read(value) and value.is_cpu else f"on {value.device}"
            if not where and without_vmap(value).dim() > value.dim():
                where = "mapped by vmap"
            if where:
                raise TypeError(
                    f"{self.op}: {name} is the width of the output and must be known on the host, "
                    f"got a tensor ({where}); pass an int or a list of B ints."
                )
            self._per_image_tensor(name, value)
            value = value.tolist()
        counts = self._per_image_list(name, value)
        for image, count in enumerate(counts):
            if count < 0:
                raise ValueError(
                    f"{self.op}: {name} must be 0 or more for every image, "
                    f"got {count} for image {image}."
                )
            if count > LARGEST_COUNT:
                raise ValueError(
                    f"{self.op}: {name} must be at most {LARGEST_COUNT} for every image, "
                    f"got {count} for image {image}."
                )
        largest = max(counts) if counts else 0  # `default=` cannot be traced
        if all(count == largest for count in counts):
            return largest, None
        return largest, upload(counts, self.device)

    def share_per_image(self, name: str, value: object, most: int) -> tuple[int, Tensor | None]:
        """Like :meth:`count_per_image`, clamped to 1..most. The counts are no output shape."""
        share = as_int(value)
        if share is not None:
            return min(max(share, 1), most), None
        if isinstance(value, Tensor):
            self._per_image_tensor(name, value)
            # A non-blocking copy to the host would let the values be read before they arrive.
            return most, value.to(self.device, non_blocking=self.device.type != "cpu")
        shares = [min(max(share, 1), most) for share in self._per_image_list(name, value)]
        largest = max(shares) if shares else 0
        if all(share == largest for share in shares):
            return largest, None
        return largest, upload(shares, self.device)

    def _per_image_list(self, name: str, value: object) -> list[int]:
        if isinstance(value, (str, bytes, bytearray)) or not (
            isinstance(value, Sequence) or _is_array(value)
        ):
            raise TypeError(
                f"{self.op}: {name} must be an int or one int per image, "
                f"got {type(value).__name__}."
            )
        counts = []
        for image, item in enumerate(value):
            count = as_int(item)
            if count is None:
                raise TypeError(
                    f"{self.op}: {name} must hold ints, got {type(item).__name__} "
                    f"for image {image}."
                )
            counts.append(count)
        if len(counts) != self.sizes["B"]:
            raise ValueError(
                f"{self.op}: {name} must hold one int per image, B = {self.sizes['B']}, "
                f"got {len(counts)}."
            )
        return counts

    def _per_image_tensor(self, name: str, value: Tensor) -> None:
        """As :meth:`tensor` for [B] int64, but on any device."""
        if value.is_nested or value.layout is not torch.strided:
            self._refuse_layout(name, value)
        if value.dtype != torch.int64:
            raise TypeError(f"{self.op}: {name} must be int64, got {_short(value.dtype)}.")
        if value.dim() != 1 or value.shape[0] != self.sizes["B"]:
            raise ValueError(
                f"{self.op}: {name} must be [B] with B = {self.sizes['B']}, "
                f"got shape {list(value.shape)}."
            )

    def indices_in_range(self, name: str, value: Tensor, least: int, size: int, what: str) -> None:
        """Checks that every index is in least..size-1, if :func:`may_read` allows reading them."""
        if value.numel() == 0 or not may_read(value):
            return
        if _is_wrapped(value):
            value = without_vmap(value)
        lowest, highest = (bound.item() for bound in value.aminmax())
        if lowest < least or highest >= size:
            wrong = lowest if lowest < least else highest
            raise ValueError(
                f"{self.op}: {name} must lie in {least}..{size - 1} ({what}), got {wrong}."
            )

    def no_repeats(self, name: str, value: Tensor) -> None:
        """Checks that no index but -1 repeats within a row, if :func:`may_read` allows it."""
        if value.shape[-1] < 2 or value.numel() == 0 or not may_read(value):
            return
        images, width = value.shape
        if _is_wrapped(value):  # treat the batch of vmap as more images
            value = without_vmap(value).reshape(-1, width)
        # A Python set, because one torch call takes as long as the whole check of a short row.
        for image, row in enumerate(value.tolist()):
            if len(set(row)) == len(row):
                continue
            used = sorted(index for index in row if index >= 0)
            for index, following in pairwise(used):
                if index == following:
                    raise ValueError(
                        f"{self.op}: {name} must name a token at most once per image, "
                        f"got {index} more than once for image {image % images}."
                    )


def _layout(letters: list[str]) -> str:
    return f"[{', '.join(letters)}]"


def _short(name: torch.dtype | torch.layout) -> str:
    return str(name).removeprefix("torch.")


def as_int(value: object) -> int | None:
    """``value`` as an int (or SymInt while tracing), or None if it is not an integer.

    A zero-dimensional integer tensor counts as an int on the CPU, where reading it does not
    synchronize.
    """
    if isinstance(value, _INTS) and not isinstance(value, bool):
        return value  # type: ignore[return-value]
    if isinstance(value, Tensor):
        if value.dim() or value.dtype not in _INTEGERS or not value.is_cpu or not may_read(value):
            return None
        return None if without_vmap(value).dim() else int(value.item())
    return _integers.as_int(value)


def _is_array(value: object) -> TypeGuard[Sequence[object]]:
    """Whether ``value`` is a one-dimensional NumPy array."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.ndim == 1


def may_read(tensor: Tensor) -> bool:
    """Whether a check may read the values of ``tensor`` without a device synchronization.

    Never while tracing. Always on the CPU. On other devices only with ``CLASP_KERNELS_STRICT=1``,
    and not while a CUDA graph is being captured.
    """
    if torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor):
        return False
    # Usually no dispatch mode is active, and checking the length of the stack is fast.
    if torch._C._len_torch_dispatch_stack() and any(
        torch._C._get_dispatch_mode(mode) is not None for mode in _TRACING_MODES
    ):
        return False
    if tensor.is_cpu:
        return True
    if os.environ.get("CLASP_KERNELS_STRICT") != "1":
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def without_vmap(tensor: Tensor) -> Tensor:
    """The tensor under all vmap levels, with the mapped dimensions moved to the front."""
    functorch = torch._C._functorch
    while _is_wrapped(tensor):
        mapped = functorch.is_batchedtensor(tensor)
        dim = functorch.maybe_get_bdim(tensor) if mapped else 0
        tensor = functorch.get_unwrapped(tensor)
        if mapped:
            tensor = tensor.movedim(dim, 0)
    return tensor
