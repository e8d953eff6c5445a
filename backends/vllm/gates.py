"""Gate weights of vLLM's routers beside the experts that they belong to, from an engine in this process.

vLLM carries the ids of experts from a router to their response, through a buffer of its step, slots of the KV cache and
rows of the response, and carries no gate. Here an id becomes 64 bits, those of its float32 gate above its own 16, so
that a gate goes wherever its id goes: over chunks, prefix-cache hits and CUDA graphs. What is wider for it are those
buffers: 8 bytes an id, where vLLM has 4 in a step and 1 or 2 in a slot.

Read in vLLM 0.30.0: `model_executor/layers/fused_moe/routed_experts_capturer.py` and `router/base_router.py` there,
`v1/worker/gpu_model_runner.py` (`init_routed_experts_capturer`), `v1/core/sched/scheduler.py`.

Shapes: N tokens, M MoE layers, K experts a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.layer import MoERunner
from vllm.model_executor.layers.fused_moe.routed_experts_capturer import RoutedExpertsManager
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.v1.core.sched import scheduler
from vllm.v1.worker import gpu_model_runner

from firstorder.core.errors import ConfigError, DataError

BITS = 16  # of an id; vLLM has none above 65,535
LOOSE = 2.0**-7  # of a sum of gates: on a CPU a bfloat16 engine rounds them, and their sum, each by up to 2^-9 of it


def _wide(*given: Any, **named: Any) -> Any:
    """vLLM's slots of routes, as wide as an id and its gate.

    Their dtype is another than that of a step, because vLLM converts the rows of a step to it without asking for a
    copy: in the same dtype they would stay views of a buffer that the next step overwrites.
    """
    manager: Any = RoutedExpertsManager(*given, **named)
    manager.routed_experts_by_slot = manager.routed_experts_by_slot.astype(np.uint64)
    return manager


@contextmanager
def carried() -> Iterator[None]:
    """Engines that are built inside return gates and ids, packed, in place of ids."""
    bind, manager = gpu_model_runner.bind_routed_experts_capturer, scheduler.RoutedExpertsManager

    def bound(model: Any, capturer: Any) -> None:
        bind(model, capturer)
        capturer.device_buffer = capturer.device_buffer.long()  # its copy on the host is made in its likeness
        for layer in model.modules():
            if isinstance(layer, MoERunner):
                _listen(layer)

    gpu_model_runner.bind_routed_experts_capturer, scheduler.RoutedExpertsManager = bound, _wide
    try:
        yield
    finally:
        gpu_model_runner.bind_routed_experts_capturer, scheduler.RoutedExpertsManager = bind, manager


def _listen(layer: Any) -> None:
    """Pack the gates that a layer's router makes into the ids that it tells vLLM.

    Raises:
        ConfigError: a kernel routes in its place, and tells ids alone.
    """
    router = layer.router
    if layer._quant_method.is_monolithic or not isinstance(router, BaseRouter):
        raise ConfigError(
            "router_replay.gates = replayed needs the gates of vLLM's routers, and here a fused kernel makes them in "
            f"place of {type(router).__name__}; set router_replay.gates = live"
        )
    compute, capture = router._compute_routing, router.capture_fn
    made: list[Tensor] = []

    def computed(*given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        gates, ids = compute(*given, **named)
        made[:] = [gates]
        return gates, ids

    router._compute_routing = computed
    router.set_capture_fn(lambda ids: capture(packed(ids, made.pop())))


def packed(ids: Tensor, gates: Tensor) -> Tensor:
    """An int64 of each id and its gate."""
    return gates.float().contiguous().view(torch.int32).long() << BITS | ids.long()


def unpacked(rows: Tensor, *, normalised: bool) -> tuple[Tensor, Tensor]:
    """Ids int16 and gates float32, `[N, M, K]`, of what an engine that was built in `carried` returns.

    Args:
        rows: uint64 `[N, M, K]`, as `packed`.
        normalised: the gates of a token sum to 1.

    Raises:
        DataError: what comes is no gate of these experts.
    """
    if rows.dtype != torch.uint64:
        raise DataError(f"vLLM returned routes of {rows.dtype}, without gate weights; is it version 0.30.0?")
    rows = rows.view(torch.int64)
    ids, gates = (rows & (1 << BITS) - 1).to(torch.int16), (rows >> BITS).to(torch.int32).view(torch.float32)
    total = gates.sum(-1)
    wrong = {
        "are not finite, or negative": ~((gates >= 0) & gates.isfinite()).all(-1),
        "do not sum to 1": (total - 1.0).abs() > LOOSE if normalised else total > 1.0 + LOOSE,
    }
    for what, hit in wrong.items():
        if hit.any():
            first = gates[hit][0].tolist()
            raise DataError(
                f"the gate weights that came with vLLM's routes {what} at {int(hit.sum())} of {hit.numel()} (token, "
                f"layer), first {first}; is it version 0.30.0? set router_replay.gates = live"
            )
    return ids, gates
