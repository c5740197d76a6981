"""Memory that runs out on purpose."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class ScarceMemory(TorchDispatchMode):
    """Refuses allocations on the CPU, as torch does: by raising torch.OutOfMemoryError."""

    def __init__(self, *, refused: range = range(0), most_bytes: int | None = None) -> None:
        """Refuse allocations by their number, counted from 0, and those of more than ``most_bytes``."""
        super().__init__()
        self.count = 0
        self._refused = refused
        self._most_bytes = most_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {storage_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            # The planner's sketches have no memory to run out of.
            if isinstance(leaf, Tensor) and not leaf.is_meta and storage_of(leaf) not in known:
                self._allocate(leaf.untyped_storage().nbytes())
        return result

    def _allocate(self, num_bytes: int) -> None:
        number, self.count = self.count, self.count + 1
        if number in self._refused or (self._most_bytes is not None and num_bytes > self._most_bytes):
            raise torch.OutOfMemoryError(f"refused {num_bytes} bytes")


def storage_of(tensor: Tensor) -> int:
    """Return what tells storages apart."""
    return tensor.untyped_storage()._cdata
