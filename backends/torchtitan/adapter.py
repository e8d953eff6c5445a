"""All that is taken from torchtitan 0.3.0, and what has to differ from it on a CPU.

No other module imports torchtitan, so another release means another version of this file. Order matters here:
torchtitan reads the device type once, when it is imported, and takes a machine without an accelerator for a CUDA one.

Shapes: R packed rows, P positions of a row, H heads, D width of a head.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

_torch_utils: Any = torch._utils
ON_CPU = _torch_utils._get_available_device_type() is None


# true on a CPU and of no consequence: nothing is drawn through DTensor, and float32 needs no autocast to float32
OF_NO_CONSEQUENCE = ("DTensor random operators may not have", "In CPU autocast, but the target dtype")
for _message in OF_NO_CONSEQUENCE if ON_CPU else ():
    warnings.filterwarnings("ignore", _message, UserWarning)


@contextmanager
def _device_named() -> Iterator[None]:
    """Let torchtitan see the CPU as a device while it is imported."""
    before = _torch_utils._get_available_device_type
    if ON_CPU:
        _torch_utils._get_available_device_type = lambda: "cpu"
    try:
        yield
    finally:
        _torch_utils._get_available_device_type = before


with _device_named():
    from torchtitan.components.checkpointer import CheckpointManager
    from torchtitan.components.loss import IGNORE_INDEX, compute_logprobs
    from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, default_adamw
    from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
    from torchtitan.config.override import derive
    from torchtitan.distributed import ParallelDims
    from torchtitan.distributed import utils as dist_utils
    from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
    from torchtitan.models.common import CosSinRoPE, Embedding, Linear
    from torchtitan.models.common.attention import FlexAttention
    from torchtitan.models.common.moe import GroupedExperts, TokenChoiceTopKRouter
    from torchtitan.models.common.nn_modules import RMSNorm
    from torchtitan.models.common.token_dispatcher import AllToAllTokenDispatcher
    from torchtitan.models.qwen3 import (
        _LINEAR_INIT,
        Qwen3Model,
        _build_qwen3_moe_layers,
        _qwen3_norm,
        parallelize_qwen3,
    )
    from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter
    from torchtitan.tools.utils import device_type, set_default_dtype

__all__ = [
    "IGNORE_INDEX",
    "ON_CPU",
    "CheckpointManager",
    "CosSinRoPE",
    "Embedding",
    "FullAC",
    "GroupedExperts",
    "LRSchedulersContainer",
    "Linear",
    "OptimizersContainer",
    "ParallelDims",
    "ParallelismConfig",
    "Qwen3Model",
    "Qwen3StateDictAdapter",
    "SelectiveAC",
    "TokenChoiceTopKRouter",
    "TrainingConfig",
    "attention_masks",
    "balanced_experts",
    "compiling",
    "compute_logprobs",
    "default_adamw",
    "derive",
    "device_type",
    "dist_utils",
    "fused_norms",
    "linear_init",
    "moe_layers",
    "norm",
    "parallelize_qwen3",
    "set_default_dtype",
    "set_timeouts",
    "start_process_group",
    "substitute",
    "whole_vocabulary",
]

linear_init, moe_layers, norm = _LINEAR_INIT, _build_qwen3_moe_layers, _qwen3_norm


class DocumentAttention(FlexAttention):
    """Attention within documents by a dense mask: flex and varlen attention have no backward on a CPU."""

    @dataclass(kw_only=True, slots=True)
    class Config(FlexAttention.Config):
        """As of `FlexAttention`."""

    def forward(
        self,
        q_BLNH: Tensor,  # torchtitan finds the layout of an argument by its name
        k_BLNH: Tensor,
        v_BLNH: Tensor,
        *,
        attention_masks: Tensor | None,
        scale: float | None = None,
        enable_gqa: bool = False,
        **_: Any,
    ) -> Tensor:
        """Attend from q to k, v `[R, P, H, D]` under a mask `[R, 1, P, P]`; without one a row is one document."""
        q, k, v = (x.transpose(1, 2) for x in (q_BLNH, k_BLNH, v_BLNH))
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attention_masks, is_causal=attention_masks is None, scale=scale, enable_gqa=enable_gqa
        )
        return attended.transpose(1, 2)


class TypedExperts(GroupedExperts):
    """Experts in the dtype of their input: the stock ones cast to bfloat16 whatever the model's dtype is."""

    @dataclass(kw_only=True, slots=True)
    class Config(GroupedExperts.Config):
        """As of `GroupedExperts`."""

    def forward(self, x_RD: Tensor, num_tokens_per_expert_E: Tensor) -> Tensor:
        """SwiGLU of the rows of `x_RD`, which are sorted by expert."""
        w1, w2, w3 = (w.to_local() if hasattr(w, "to_local") else w for w in (self.w1_EFD, self.w2_EDF, self.w3_EFD))
        ends = torch.cumsum(num_tokens_per_expert_E, dim=0, dtype=torch.int32)

        def multiply(rows: Tensor, weight: Tensor) -> Tensor:
            product: Tensor = self._grouped_mm(A=rows, B_t=weight.to(x_RD.dtype).transpose(-2, -1), offs=ends)
            return product

        return multiply(F.silu(multiply(x_RD, w1)) * multiply(x_RD, w3), w2)


def substitute(config: Any, dtype: torch.dtype) -> None:
    """Swap the parts of a model config that cannot run as they are on this device or in this dtype."""
    for layer in config.layers:
        if ON_CPU:
            layer.attention.inner_attention = derive(layer.attention.inner_attention, DocumentAttention.Config)
        if dtype is not torch.bfloat16:
            experts = layer.moe.routed_experts
            experts.inner_experts = derive(experts.inner_experts, TypedExperts.Config)


def compiling(backend: str) -> CompileConfig:
    """torchtitan's compile config, or that of no compilation for `backend` "none".

    A block is compiled anew with and without gradient, with and without replay, for one row, for two and for any
    number; torch's default of 8 variants is below that, and to exceed it is an error.
    """
    if backend == "none":
        return CompileConfig()
    dynamo: Any = torch._dynamo
    dynamo.config.recompile_limit = max(32, dynamo.config.recompile_limit)
    return CompileConfig(enable=True, components=["model"], backend=backend)


def whole_vocabulary(logits: Any) -> Tensor:
    """Logits `[R, P, V]` whose vocabulary may be shared out among the ranks, gathered as `compute_logprobs` does."""
    if not isinstance(logits, DTensor):
        plain: Tensor = logits
        return plain
    last = (-1, logits.ndim - 1)
    placements = [Replicate() if isinstance(p, Shard) and p.dim in last else p for p in logits.placements]
    return logits.redistribute(placements=placements).to_local()


def attention_masks(model: Any, positions: Tensor) -> Any:
    """What the model's attention needs to stay within documents; a document starts where `positions` `[R, P]` is 0."""
    if not ON_CPU:
        return model.get_attention_masks(positions)
    document = (positions == 0).cumsum(-1)
    order = torch.arange(positions.shape[-1])
    return (document[:, None, :, None] == document[:, None, None, :]) & (order[:, None] >= order)


def start_process_group(timeout: float = 1800.0) -> int:
    """The default process group, from the variables that torchrun sets or for one process; returns the world size.

    It must exist before vLLM starts in the same process: vLLM joins a group that is there, torchtitan's device mesh
    does not. `timeout`, in seconds, is how long a rank waits for the others.
    """
    distributed: Any = torch.distributed
    if not distributed.is_initialized():
        backend, wait = distributed.Backend.default_device_backend_map[device_type], timedelta(seconds=timeout)
        if not ON_CPU:  # what ranks tell each other as objects, rollouts above all, stays in host memory
            backend = f"cpu:gloo,{device_type}:{backend}"
        if "RANK" in os.environ:
            distributed.init_process_group(backend, timeout=wait)
        else:
            distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1, timeout=wait)
    return int(distributed.get_world_size())


def set_timeouts(dims: Any, timeout: float) -> None:
    """Let the groups of a layout's meshes wait `timeout` seconds too; torch gives them its own default."""
    distributed: Any = torch.distributed.distributed_c10d
    for mesh in dims.get_all_one_dimensional_meshes().values():
        distributed._set_pg_timeout(timedelta(seconds=timeout), mesh.get_group())


class BalancedDispatch:
    """In place of torchtitan's exchange of token counts, which are data: every rank sends every other equally many."""

    def __init__(self) -> None:
        self.routed = 0  # (token, expert) pairs of this rank in the dispatch under way

    def dispatch(self, before: Any) -> Any:
        """torchtitan's dispatch, which is told how many pairs it moves."""

        def counted(this: Any, x_TD: Tensor, scores_TK: Tensor, ids_TK: Tensor, counts_E: Tensor) -> Any:
            self.routed = ids_TK.numel()
            return before(this, x_TD, scores_TK, ids_TK, counts_E)

        return counted

    def counts(self, this: Any, mine: Tensor, everyones: Tensor, ranks: int) -> tuple[Tensor, list[int], list[int]]:
        """Counts by expert, and how many rows go to and come from each rank."""
        splits = [self.routed // ranks] * ranks
        return torch.ops._c10d_functional.wait_tensor(everyones).reshape(-1), splits, splits


@contextmanager
def balanced_experts() -> Iterator[None]:
    """Let every expert take the same number of tokens, as long as tensors are fake and hold no counts."""
    stock = AllToAllTokenDispatcher.dispatch, AllToAllTokenDispatcher._sync_token_count_exchange
    even = BalancedDispatch()
    AllToAllTokenDispatcher.dispatch = even.dispatch(stock[0])
    AllToAllTokenDispatcher._sync_token_count_exchange = lambda *arguments: even.counts(*arguments)
    try:
        yield
    finally:
        AllToAllTokenDispatcher.dispatch, AllToAllTokenDispatcher._sync_token_count_exchange = stock


_Function: Any = torch.autograd.Function


class FusedNorm(_Function):
    """What a GPU's RMS norm allocates: the result and a float32 scale of each row, and it keeps its input for backward.

    A CPU has no such kernel and keeps two float32 tensors as large as the input. For fake tensors, without values.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """A result of the shape of `x`."""
        ctx.save_for_backward(x, weight, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the shapes of `x` and of the weight."""
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


@contextmanager
def fused_norms() -> Iterator[None]:
    """Let norms allocate what they do on a GPU, as long as tensors are fake and hold no values."""

    def forward(self: Any, x: Tensor) -> Any:  # torchtitan finds arguments by their names
        return FusedNorm.apply(x, self.weight)

    stock, RMSNorm.forward = RMSNorm.forward, forward
    try:
        yield
    finally:
        RMSNorm.forward = stock
