"""The `[sim]` section: the tiny policy, its prompts, its two engines and how stale the target is."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from firstorder.core.errors import ConfigError
from firstorder.core.recipe import Recipe, Section
from firstorder.core.routing import Router, RouterKind, check_router

from .numerics import Numerics

MAX_PROMPTS = 1_000_000
DEFAULT_POOL = 64


class Sim(Section):
    """Sizes, engines and staleness of an exact experiment. Lengths are in tokens."""

    vocab: int = Field(4, ge=2, description="tokens; token 0 ends a response")
    horizon: int = Field(5, ge=1, description="longest response")
    prompts: int = Field(4, ge=1, description="prompts measured, equally likely")
    prompt_length: int = Field(2, ge=1)
    layers: int = Field(2, ge=1, description="MoE layers")
    experts: int = Field(8, ge=2)
    top_k: int = Field(2, ge=1)
    router: RouterKind = "softmax_topk"
    groups: int = Field(2, ge=1, description="expert groups of router = group_limited")
    limited_groups: int = Field(1, ge=1)
    width: int = Field(16, ge=1)
    expert_width: int = Field(16, ge=1)
    sharpness: float = Field(1.5, gt=0.0, allow_inf_nan=False, description="standard deviation of the initial logits")
    temperature: float = Field(1.0, gt=0.0, allow_inf_nan=False)
    seed: int = Field(0, ge=0, description="weights")
    task: Literal["sum", "program", "text", "guess"] = "sum"
    turn_length: int = Field(1, ge=1, description="tokens of a turn of task = guess, whose environment then answers")
    reward: Literal["binary", "graded"] | None = Field(None, description="unset: binary for sum, graded for the others")
    truncated: Literal["scored", "zero"] = Field("scored", description="what a response cut at the horizon earns")
    numerics: Numerics = Numerics(kind="noise")
    training_numerics: Numerics = Numerics(kind="exact")
    draws: int = Field(32, ge=2, description="calls averaged over when numerics.kind = batch")
    coldstart: Literal["none", "terse", "verbose", "roundabout"] = "none"
    coldstart_share: float = Field(0.75, gt=0.0, le=1.0, description="share of the demonstrations that are correct")
    coldstart_steps: int = Field(100, ge=1, description="supervised steps on those demonstrations")
    coldstart_lr: float = Field(0.01, gt=0.0, allow_inf_nan=False, description="learning rate of those steps")
    pool: int | None = Field(
        None, ge=1, description="training prompts, the measured ones among them; unset: as many as there are, up to 64"
    )
    members: int = Field(1, ge=1, description="policies trained at once, their seeds counting up from `seed`")
    checkpoint_every: int = Field(20, ge=1, description="steps between checkpoints")
    evaluate_every: int = Field(10, ge=0, description="steps between exact evaluations while training; 0 for none")
    staleness: int = Field(0, ge=0, description="plain-SGD steps from theta_old to theta")
    lr: float = Field(0.1, gt=0.0, allow_inf_nan=False, description="step size of those steps")
    direction: Literal["natural", "recipe"] = "natural"

    @property
    def routing(self) -> Router:
        """The router of every MoE layer."""
        return Router(
            kind=self.router,
            experts=self.experts,
            top_k=self.top_k,
            groups=self.groups,
            limited_groups=self.limited_groups,
        )

    @property
    def available(self) -> int:
        """Prompts that exist: every word of `prompt_length` tokens 1 to V-1."""
        return int((self.vocab - 1) ** self.prompt_length)

    @property
    def training_prompts(self) -> int:
        """The size of the pool."""
        return self.pool or min(max(self.prompts, DEFAULT_POOL), self.available)

    @property
    def graded(self) -> bool:
        """Whether the reward has levels between 0 and 1."""
        return self.reward == "graded" or (self.reward is None and self.task != "sum")

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        check_router(self.routing)
        available = self.available
        if available > MAX_PROMPTS:
            raise ValueError(
                f"sim.prompt_length = {self.prompt_length} over {self.vocab - 1} tokens makes more than "
                f"{MAX_PROMPTS:,} prompts to choose from; lower sim.prompt_length or sim.vocab"
            )
        if self.prompts > available:
            raise ValueError(
                f"sim.prompts = {self.prompts} but only {available} prompts of sim.prompt_length = "
                f"{self.prompt_length} exist over {self.vocab - 1} tokens; raise sim.prompt_length"
            )
        if self.pool is not None and not self.prompts <= self.pool <= available:
            raise ValueError(
                f"sim.pool = {self.pool} must hold the sim.prompts = {self.prompts} measured ones and at most the "
                f"{available} prompts of sim.prompt_length = {self.prompt_length} over {self.vocab - 1} tokens; "
                + ("raise sim.prompt_length or sim.vocab" if self.pool > available else "raise sim.pool")
            )
        if self.task == "guess" and self.vocab < 4:
            raise ValueError(
                f"sim.task = guess answers with tokens 1 to 3, got sim.vocab = {self.vocab}; raise it to 4"
            )
        if self.task == "guess" and self.turn_length > self.horizon:
            raise ValueError(
                f"sim.turn_length = {self.turn_length} is more than sim.horizon = {self.horizon}, so no turn "
                "would end; lower sim.turn_length"
            )
        if self.staleness and self.prompts == available:
            raise ValueError(
                f"sim.staleness moves theta on prompts other than those measured, but sim.prompts = {self.prompts} "
                "measures all; lower sim.prompts or raise sim.prompt_length"
            )
        if self.direction == "recipe" and self.numerics.kind == "batch":
            raise ValueError(
                "sim.direction = recipe needs one update, but numerics.kind = batch draws many; use natural"
            )
        for name in ("numerics", "training_numerics"):
            if getattr(self, name).kind == "gate_order" and self.router not in ("softmax_topk", "topk_softmax"):
                raise ValueError(
                    f"sim.{name}.kind = gate_order reorders a softmax and a top-k, but sim.router = {self.router} has "
                    "one order only; use softmax_topk or topk_softmax"
                )
        if self.training_numerics.kind == "batch":
            raise ValueError(
                "sim.training_numerics.kind = batch is not defined: the target must be a function of the prefix"
            )
        return self


def check_replay(recipe: Recipe, sim: Sim) -> None:
    """Refuse replay where it can never act.

    Raises:
        ConfigError: every expert is always chosen.
    """
    if recipe.router_replay.mode != "disabled" and sim.top_k == sim.experts:
        raise ConfigError(
            f"router_replay.mode = {recipe.router_replay.mode} can never act with sim.top_k = sim.experts = "
            f"{sim.experts} (a dense model); lower sim.top_k or disable replay"
        )
