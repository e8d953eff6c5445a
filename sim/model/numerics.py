"""How an engine computes: the arithmetic that a policy runs its matrix products, gates and residuals through.

Shapes: M members of an ensemble, N prefixes, D inputs, F outputs, E experts, K experts a token.

The policy is written once against `Arithmetic`; an engine is the policy's weights, an arithmetic and routes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core import quantize
from firstorder.core.router import Router
from firstorder.core.routing import Routing, gate_weights, score
from firstorder.sim.config import Numerics

from . import noise

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
SPLITS = (0, 4, 8, 16)  # reduction splits that a batch-dependent kernel picks from; 0 is one pass


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a product stands: its layer and which of the layer's products it is; with the prefixes' hash keys."""

    layer: int
    name: int
    keys: Tensor | None

    def key(self, seed: Tensor, draw: Tensor | None = None) -> Tensor:
        """Hash keys `[M, N]` of this site for every member and prefix, and of each member's `draw` `[M]`."""
        assert self.keys is not None
        keys = self.keys if draw is None else noise.combine(self.keys, draw[:, None])
        base = noise.combine(seed[:, None], keys)
        return noise.combine(base, self.layer * 16 + self.name)


TINY = 1e-60  # under a root whose gradient at 0 is infinite
ROUTER, MIX, UP, DOWN, HEAD = range(5)
WEIGHTS = {"router": ROUTER, "mix_x": MIX, "mix_s": MIX, "up": UP, "down": DOWN, "head": HEAD}


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """An engine's arithmetic for an ensemble.

    Args:
        numerics: the kind and its constants.
        router_scale, expert_scale: `[M]` relative noise of each member; read by `noise` only.
        seed: int64 `[M]` noise seed of each member.
        draw: int64 `[M]`, which of its engine's noises each member is; None where an engine has one.
    """

    numerics: Numerics
    router_scale: Tensor
    expert_scale: Tensor
    seed: Tensor
    draw: Tensor | None = None

    def members(self, cut: slice) -> Arithmetic:
        """The arithmetic of some members."""
        parts = {name: getattr(self, name)[cut] for name in ("router_scale", "expert_scale", "seed")}
        return replace(self, **parts, draw=None if self.draw is None else self.draw[cut])

    def copies(self, count: int) -> Arithmetic:
        """Every member so many times, the copies of a member one after the other."""
        names = ("router_scale", "expert_scale", "seed")
        copies = {name: getattr(self, name).repeat_interleave(count) for name in names}
        return replace(self, **copies, draw=None if self.draw is None else self.draw.repeat_interleave(count))

    def repeat(self, count: int) -> Arithmetic:
        """The arithmetic of the first member, for an ensemble of copies of it."""
        return self.members(slice(0, 1)).copies(count)

    def each(self, draws: int) -> Arithmetic:
        """Every member once for each of its engine's noises, the draws of a member one after the other."""
        return replace(self.copies(draws), draw=torch.arange(draws).repeat(len(self.seed)))

    def weight(self, w: Tensor, name: str) -> Tensor:
        """A weight as the engine stores it: `[M, ..., D, F]`, the router and head spared from 8 bits."""
        kind = self.numerics.kind
        if kind in ("bf16", "fp16"):
            return quantize.round_to(w, DTYPES[kind])
        if kind in ("fp8", "int8"):
            if name in ("router", "head"):
                return quantize.round_to(w, torch.bfloat16)
            if kind == "int8":
                return quantize.int8(w, (-2,))
            return quantize.fp8_blocks(w, self.numerics.block) if self._blocked else quantize.fp8(w, (-2, -1))
        return w

    @property
    def plain(self) -> bool:
        """Whether a product is x @ w as float64 has it, whatever else runs in it; see `product`."""
        return self.numerics.plain

    def product(self, x: Tensor, w: Tensor, site: Site) -> Tensor:
        """x @ w, `[M, N, D] @ [M, D, F]`, as the engine computes it."""
        kind = self.numerics.kind
        if kind in ("bf16", "fp16"):
            return self.round(torch.bmm(quantize.round_to(x, DTYPES[kind]), w))
        if kind in ("fp8", "int8"):
            return self.round(torch.bmm(self._activation(x, site), w))
        if kind == "split":
            return self._split_product(x, w, self.numerics.split)
        if kind == "batch":
            return self._batch_product(x, w, site)
        product = torch.bmm(x, w)
        return self.perturb(product, site) if site.name == HEAD and self.numerics.head_scale else product

    def round(self, x: Tensor) -> Tensor:
        """A residual or an output in the engine's activation format."""
        kind = self.numerics.kind
        if kind == "fp16":
            return quantize.round_to(x, torch.float16)
        return quantize.round_to(x, torch.bfloat16) if kind in ("bf16", "fp8", "int8") else x

    def perturb(self, x: Tensor, site: Site) -> Tensor:
        """x plus relative Gaussian noise of this site: x + s · rms(x) · ξ(seed, prefix, layer, site); `[M, N, F]`."""
        if self.numerics.kind != "noise":
            return x
        scale = self._scale(site)
        channel = torch.arange(x.shape[-1], dtype=torch.int64)
        draw = noise.normal(noise.combine(site.key(self.seed, self.draw)[..., None], channel))
        size = (x.square().mean(-1, keepdim=True) + TINY).sqrt()
        return x + scale[:, None, None] * size * draw

    def gates(self, logits: Tensor, routing: Routing, router: Router) -> Tensor:
        """Gates in the engine's own order of operations, `[M, N, K]`; the routing's own unless the kind says so."""
        if self.numerics.kind != "gate_order" or router.kind not in ("softmax_topk", "topk_softmax"):
            return routing.gates
        other = "topk_softmax" if router.kind == "softmax_topk" else "softmax_topk"
        swapped = router.model_copy(update={"kind": other})
        low = logits.to(DTYPES[self.numerics.accumulate])
        own = gate_weights(low, score(low, swapped), routing.ids, swapped).to(logits.dtype)
        return own if routing.frozen is None else torch.where(routing.frozen, routing.gates, own)

    def _scale(self, site: Site) -> Tensor:
        """Relative size of the noise of each member at a site, `[M]`."""
        if site.name == HEAD:
            return torch.full_like(self.expert_scale, self.numerics.head_scale)
        return self.router_scale if site.name == ROUTER else self.expert_scale

    @property
    def _blocked(self) -> bool:
        return self.numerics.granularity == "block"

    def _activation(self, x: Tensor, site: Site) -> Tensor:
        if site.name in (ROUTER, HEAD):
            return quantize.round_to(x, torch.bfloat16)
        if self.numerics.kind == "int8":
            return quantize.int8(x, (-1,))
        return quantize.fp8_groups(x, self.numerics.block) if self._blocked else quantize.fp8(x, (-1,))

    def _split_product(self, x: Tensor, w: Tensor, split: int) -> Tensor:
        """Partial sums over pieces of the contraction, each rounded, added in order and rounded again."""
        dtype = DTYPES[self.numerics.accumulate]
        size = x.shape[-1] if split == 0 else -(-x.shape[-1] // split)
        total = torch.zeros(*x.shape[:-1], w.shape[-1], dtype=x.dtype)
        for a, b in zip(torch.split(x, size, dim=-1), torch.split(w, size, dim=-2), strict=True):
            total = quantize.round_to(total + quantize.round_to(torch.bmm(a, b), dtype), dtype)
        return total

    def _batch_product(self, x: Tensor, w: Tensor, site: Site) -> Tensor:
        """A split picked by hash for every (call, prefix): what a kernel chosen by batch size does."""
        pick = noise.uniform(site.key(self.seed))[..., None] * len(SPLITS)
        total = self._split_product(x, w, SPLITS[0])
        for index, split in enumerate(SPLITS[1:], start=1):
            total = torch.where(pick >= index, self._split_product(x, w, split), total)
        return total


def arithmetic(numerics: Numerics, seeds: Tensor, scale: Tensor | None = None) -> Arithmetic:
    """The arithmetic of one engine for an ensemble.

    Args:
        numerics: the kind and its constants.
        seeds: int64 `[M]`; the noise seed of member m is hashed from (numerics.seed, seeds[m]).
        scale: `[M]` relative noise of each member in place of the one in `numerics`.
    """
    base = torch.full(seeds.shape, numerics.scale, dtype=torch.float64) if scale is None else scale.double()
    router, expert = (
        base if one is None else torch.full_like(base, one) for one in (numerics.router_scale, numerics.expert_scale)
    )
    seed = noise.combine(noise.mix(seeds), numerics.seed)
    return Arithmetic(numerics=numerics, router_scale=router, expert_scale=expert, seed=seed)
