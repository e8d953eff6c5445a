"""Emulated FP8 weights for vLLM on a CPU, which has no kernels for them: e4m3 values, multiplied in float32.

    y = Q_x(x) Q_w(w)ᵀ,   Q = s · e4m3(x / s),   s = amax / 448

| scheme | weights share a scale | activations share a scale |
|---|---|---|
| `fp8_per_tensor` | in a matrix, an expert's gate and up together | in a token |
| `fp8_per_block` | in a 128 x 128 block | in a token's 128 channels |

These are the scales of vLLM's online quantisation, except that its per-tensor experts share one scale among all tokens
of a batch, and that it does not let scales of blocks fall below 1e-4 / 448. Every matrix of attention and experts is
rounded, and so is what enters it, between the two products of an expert too; routers, embeddings and the output head
are not. A product accumulates in float32 and is rounded to the model's dtype, as on a GPU.

Quantised once per load, so weights that are synchronised are quantised anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.utils import replace_parameter

from firstorder.core.quantize import fp8, fp8_blocks, fp8_groups

from .arguments import EMULATED, ROUTERS

BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How float32 weights `[..., out, in]` and activations `[tokens, in]` are rounded."""

    weights: Callable[[Tensor], Tensor]
    activations: Callable[[Tensor], Tensor]


PER_TENSOR = Scheme(weights=lambda w: fp8(w, (-2, -1)), activations=lambda x: fp8(x, (-1,)))
PER_BLOCK = Scheme(weights=lambda w: fp8_blocks(w, BLOCK), activations=lambda x: fp8_groups(x, BLOCK))


class Linear(UnquantizedLinearMethod):
    """A linear layer of rounded weights on rounded activations."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self._scheme = scheme

    def process_weights_after_loading(self, layer: Any) -> None:
        """Round the weights that were loaded, then pack them as vLLM does."""
        replace_parameter(layer, "weight", self._scheme.weights(layer.weight.data.float()))
        super().process_weights_after_loading(layer)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y `[tokens, out]` in the dtype of x."""
        product: Tensor = super().apply(layer, self._scheme.activations(x.float()), bias)
        return product.to(x.dtype)


class Experts(UnquantizedFusedMoEMethod):
    """Experts of rounded weights on rounded activations.

    vLLM's fused kernel keeps the activations between the two products to itself, so each expert is two products of
    vLLM's dense kernel here. That one gives a row the same result in every batch.
    """

    def __init__(self, scheme: Scheme, moe: Any) -> None:
        super().__init__(moe)
        self._scheme = scheme
        self._products: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = []

    def process_weights_after_loading(self, layer: Any) -> None:
        """Round the weights that were loaded and pack them, expert by expert."""
        gate_up, down = layer.w13_weight.data.float(), layer.w2_weight.data.float()
        if self._scheme is PER_BLOCK:  # vLLM pads gate and up to whole blocks: none holds rows of both
            gate_up = torch.cat([self._scheme.weights(half) for half in gate_up.chunk(2, dim=-2)], dim=-2)
        else:
            gate_up = self._scheme.weights(gate_up)
        down = self._scheme.weights(down)
        self._products = [(_product(into), _product(out)) for into, out in zip(gate_up, down, strict=True)]
        for name in ("w13_weight", "w2_weight"):
            replace_parameter(layer, name, torch.empty(0))

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        """Σ_k gate_k expert_k(x) `[tokens, out]` in the dtype of x."""
        rounded, total = self._scheme.activations(x.float()), torch.zeros(x.shape, dtype=torch.float32)
        for expert, (into, out) in enumerate(self._products):
            rows, place = (topk_ids == expert).nonzero(as_tuple=True)
            if len(rows):
                gate, up = into(rounded[rows]).to(x.dtype).chunk(2, dim=-1)
                inner = torch.nn.functional.silu(gate.float()) * up.float()
                part = out(self._scheme.activations(inner.to(x.dtype).float())).to(x.dtype)
                total[rows] += topk_weights[rows, place, None].float() * part.float()
        return total.to(x.dtype)


def _product(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """x -> x wᵀ in vLLM's kernel."""
    packed: Any = SimpleNamespace(weight=torch.nn.Parameter(weight.contiguous(), requires_grad=False))
    dispatch_cpu_unquantized_gemm(packed, remove_weight=True)
    return lambda x: packed.cpu_linear(x, packed.weight, None)  # type: ignore[no-any-return]


class Emulated(QuantizationConfig):
    """Which layers are rounded. Pickled to vLLM's processes, whose import of this module registers the schemes."""

    scheme: Scheme
    name: str

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """Linear layers and experts are rounded, routers are not; the rest is none of quantisation's business."""
        ignored = any(fnmatch(prefix, pattern) for pattern in ROUTERS)
        if isinstance(layer, LinearBase):
            return UnquantizedLinearMethod() if ignored else Linear(self.scheme)
        return Experts(self.scheme, layer.moe_config) if isinstance(layer, RoutedExperts) else None

    def get_name(self) -> str:
        """The name under which vLLM knows the scheme."""
        return self.name

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Those of vLLM's own kernels."""
        return [torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Of a GPU: none."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """No file says more."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Emulated:
        """The scheme needs no settings."""
        return cls()


@register_quantization_config(EMULATED["fp8_per_tensor"])
class PerTensor(Emulated):
    """`fp8_per_tensor`."""

    scheme, name = PER_TENSOR, EMULATED["fp8_per_tensor"]


@register_quantization_config(EMULATED["fp8_per_block"])
class PerBlock(Emulated):
    """`fp8_per_block`."""

    scheme, name = PER_BLOCK, EMULATED["fp8_per_block"]
