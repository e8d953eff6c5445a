"""The bytes that tensors hold, followed operation by operation; fake tensors count as what they stand for.

torch's own tracker counts a sharded tensor at its global size where the optimizer touches it. Here an operation on a
distributed tensor is let through to the operations on its local parts, and those are counted; what torch makes at
global size only to learn the shape of a result is not.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_Mode: Any = TorchDispatchMode
_Propagator: Any = ShardingPropagator
_AsyncTensor: Any = torch.distributed._functional_collectives.AsyncCollectiveTensor


class Ledger(_Mode):
    """Counts every storage that is made inside, from its first operation until nothing holds it.

    Attributes:
        live: bytes alive now.
        peak: most bytes alive at once since `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._shapes_only = 0

    def count(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take in tensors that were there before."""
        for tensor in tensors:
            self._enter(tensor.to_local() if isinstance(tensor, DTensor) else tensor)

    def restart(self) -> None:
        """Measure the peak from here."""
        self.peak = self.live

    def __enter__(self) -> Ledger:
        """Follow operations, and storages that FSDP frees and fills again in place."""
        self._resize = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = self._resize(storage, size)
            self._sized(storage)
            return result

        self._propagate = propagate = _Propagator._propagate_tensor_meta_non_cached

        def shapes(*arguments: Any) -> Any:
            self._shapes_only += 1
            try:
                return propagate(*arguments)
            finally:
                self._shapes_only -= 1

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        _Propagator._propagate_tensor_meta_non_cached = shapes
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop."""
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        _Propagator._propagate_tensor_meta_non_cached = self._propagate
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and enter what it made."""
        if any(issubclass(kind, (DTensor, _AsyncTensor)) for kind in types):
            return NotImplemented  # its local parts come by themselves
        result = func(*args, **(kwargs or {}))
        if self._shapes_only:
            return result
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, (DTensor, _AsyncTensor)):
                self._enter(tensor)
        return result

    def _enter(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        number = storage._cdata
        if number not in self._sizes:
            self._sizes[number] = 0
            weakref.finalize(storage, self._leave, number)
            self._sized(storage)

    def _sized(self, storage: torch.UntypedStorage) -> None:
        number = storage._cdata
        if number in self._sizes:
            self.live += storage.nbytes() - self._sizes[number]
            self._sizes[number] = storage.nbytes()
            self.peak = max(self.peak, self.live)

    def _leave(self, number: int) -> None:
        self.live -= self._sizes.pop(number)
