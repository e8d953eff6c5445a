"""One step of the policy over many prefixes, checkpointed in chunks, so that memory stays linear in their number."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from firstorder.core.routing import Replay

from .policy import Model, Step, step

# contexts x members run at once; above it the forward is checkpointed, so that memory stays linear in contexts
CHUNK_ROWS = 1 << 15


def numbers(rows: int, width: int) -> int:
    """Numbers that a kernel works on at once where there are so many rows, members x contexts or x responses."""
    return min(rows, CHUNK_ROWS) * width


def chunked_step(model: Model, state: Tensor | None, inputs: Tensor, keys: Tensor, replay: Replay | None) -> Step:
    """`policy.step`, in checkpointed chunks of prefixes once there are many; arguments as there."""
    size = max(1, CHUNK_ROWS // len(model.weights["embed"]))
    if keys.shape[-1] <= size:
        return step(model, state, inputs, keys, replay)
    chunks = []
    for start in range(0, keys.shape[-1], size):
        cut = slice(start, start + size)
        routes = None if replay is None else replay.each(partial(_cut, cut=cut))
        carried = None if state is None else state[:, cut]
        given = inputs[cut] if inputs.is_floating_point() else inputs[..., cut]
        chunks.append(_checkpointed(model, carried, given, keys[..., cut], routes))
    return Step(**{name: torch.cat([getattr(c, name) for c in chunks], dim=1) for name in vars(chunks[0])})


def _cut(x: Tensor, cut: slice) -> Tensor:
    return x[:, cut]


def _checkpointed(model: Model, state: Tensor | None, inputs: Tensor, keys: Tensor, replay: Replay | None) -> Step:
    if not torch.is_grad_enabled():
        return step(model, state, inputs, keys, replay)

    def tensors(carried: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(vars(step(model, carried, inputs, keys, replay)).values())

    values = checkpoint(tensors, state, use_reentrant=False, preserve_rng_state=False)
    return Step(**dict(zip(Step.__dataclass_fields__, values, strict=True)))
