"""The settings of a router, without torch, so that they are checked before it is imported."""

from __future__ import annotations

from typing import Literal

from .errors import ConfigError
from .settings.section import Section, within

MAX_EXPERTS = 32767  # ids are int16
SIZE, SIZE_WHY = f"[1, {MAX_EXPERTS}]", "routes are kept in 16 bits"

RouterKind = Literal["softmax_topk", "topk_softmax", "sigmoid_bias", "group_limited", "top1"]


class Router(Section):
    """A router: how scores are made, how experts are chosen and how gates are formed.

    - `softmax_topk`: softmax over all experts, take K, renormalise (Qwen3-MoE, torchtitan).
    - `topk_softmax`: take K logits, softmax over them (Mixtral, Megatron); equal to the above in exact arithmetic.
    - `sigmoid_bias`: sigmoid scores; a bias moves the choice only; unbiased scores are gathered and renormalised
      (DeepSeek-V3).
    - `group_limited`: `sigmoid_bias` restricted to the best `limited_groups` of `groups`, a group's score being
      the sum of its two best (DeepSeek-V3, node-limited).
    - `top1`: one expert, its softmax probability is the gate (Switch).
    """

    kind: RouterKind = "softmax_topk"
    experts: int = within(8, f"[2, {MAX_EXPERTS}]", SIZE_WHY)
    top_k: int = within(2, SIZE, SIZE_WHY)
    groups: int = within(1, SIZE, SIZE_WHY)
    limited_groups: int = within(1, SIZE, SIZE_WHY)


def check_router(router: Router) -> None:
    """Refuse sizes that cannot route.

    Raises:
        ConfigError: naming the key and the remedy.
    """
    if router.top_k > router.experts:
        raise ConfigError(f"top_k must be at most experts = {router.experts}, got {router.top_k}; lower top_k")
    if router.kind == "top1" and router.top_k != 1:
        raise ConfigError(f"router top1 takes one expert, got top_k = {router.top_k}; set top_k = 1")
    if router.kind == "group_limited":
        size, rest = divmod(router.experts, router.groups)
        if rest or size < 2 or router.limited_groups > router.groups:
            raise ConfigError(
                f"group_limited needs groups of at least 2 experts that divide experts = {router.experts}, "
                f"got groups = {router.groups}, limited_groups = {router.limited_groups}"
            )
        if router.top_k > size * router.limited_groups:
            raise ConfigError(
                f"top_k must be at most {size * router.limited_groups}, the experts of limited_groups groups, "
                f"got {router.top_k}"
            )
