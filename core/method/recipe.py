"""Recipes: a method and a schedule, typed and checked, and nothing about any backend.

A recipe is read from TOML (`core.settings.toml`), names every part of the weight
`w_t = A · clip(ratio) · correction / norm` and declares its scope, which is checked against its parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from firstorder.core.errors import ConfigError
from firstorder.core.settings.overrides import pairs
from firstorder.core.settings.section import COUNT_WHY, Section, within
from firstorder.core.settings.toml import assign, build

Scope = Literal["token", "sequence", "group", "batch"]
SCOPES: tuple[Scope, ...] = ("token", "sequence", "group", "batch")

Policies = Literal["theta/mu", "theta/old", "old/mu"]
Span = Literal["token", "prefix", "sequence", "geometric", "forward", "min_prefix"]


Exponent = Annotated[float, Field(ge=0.0, le=100.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
STEP_WHY = "AdamW moves a weight by about lr a step, and weights are of the order of 1"


class About(Section):
    """What the recipe is called, where it comes from and how far a weight of it looks."""

    name: str = Field(
        "custom",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$",
        json_schema_extra={"why": "a name is 1 to 80 letters, digits, dots, hyphens and underscores, no sign first"},
    )
    summary: str = ""
    source: str = ""
    scope: Scope | None = None
    unsupported: str | None = Field(None, description="why the method does not fit the form; it cannot be run")


class Advantage(Section):
    """Baseline over the responses of one prompt (`core.method.advantage`), or `value`, a learned one
    (`core.method.value`)."""

    baseline: Literal["none", "group_mean", "leave_one_out", "value"] = "group_mean"
    std: bool = False
    gae_lambda: float = within(
        1.0, "[0, 1]", "λ weighs the sampled reward", "λ of baseline `value`; 1 keeps the sampled reward"
    )


class Ratio(Section):
    """The importance ratio that multiplies the advantage: `core.method.ratio`."""

    of: Literal["none"] | Policies = "theta/mu"
    span: Span = "token"
    steps: int = within(1, "[1, 16777216]", "no response is longer", "tokens of the `forward` span")
    router_floor: float | None = within(
        None, "(0, 1)", "it multiplies a ratio", "multiply by exp(-router shift), at least this: `core.method.shift`"
    )


class Correction(Section):
    """A further factor made from a ratio: `core.method.correction`. `low`, `high` are its bounds where the kind has
    any."""

    kind: Literal[
        "none",
        "ratio",
        "truncate",
        "mask",
        "sequence_mask",
        "geometric_mask",
        "vespo",
        "max_kl",
        "mean_kl",
    ] = "none"
    of: Policies = "old/mu"
    span: Span = "token"
    low: float = within(0.0, "[0, 1000000]", "ratios beyond it are never met, so that all would be masked")
    high: float = within(float("inf"), "(0, inf]", "a ratio is positive; inf is no bound")
    positive: tuple[Exponent, Exponent] = within(
        (2.0, 3.0), "[0, 100]", "they are exponents of a weight", "(c1, c2) of `vespo` for A > 0"
    )
    negative: tuple[Exponent, Exponent] = within(
        (3.0, 2.0), "[0, 100]", "they are exponents of a weight", "(c1, c2) of `vespo` for A < 0"
    )


class Clip(Section):
    """How far the target may move: `core.method.clip`. Ratio clips bound r to [1 - low, 1 + high], `ctpo` and `gmpo`
    bound log r; `tv` and `kl` use `high`."""

    kind: Literal["none", "minirl", "ppo", "gspo", "cispo", "tv", "kl", "m2po", "ctpo", "gmpo"] = "none"
    low: float = within(0.2, "[0, 1000000]", "it is a distance from the ratio 1")
    high: float = within(0.27, "(0, 1000000]", "a wider clip never acts; set clip.kind = none instead")
    budget: float = within(0.04, "(0, 1000000]", "it is a mean square of log-ratios, which `m2po` allows")


class Aggregation(Section):
    """What divides a token's weight: nothing, |y|^alpha, the batch's token count, or a constant."""

    kind: Literal["token_sum", "length", "token_mean", "constant"] = "token_sum"
    alpha: float = within(1.0, "[0, 1]", "0 is a sum over tokens and 1 their mean")
    constant: float = within(1.0, "[1e-6, 1e12]", "it divides the weight of every token")


class RouterReplay(Section):
    """Whose experts the target replays: nobody's, π_old's (R2) or μ_old's (R3)."""

    mode: Literal["disabled", "R2", "R3"] = "disabled"


class Schedule(Section):
    """A global step: `prompts` × `group_size` responses, split into `minibatches` updates (the N of the paper)."""

    steps: int = within(100, "[1, 1000000000]", COUNT_WHY)
    prompts: int = within(64, "[1, 1048576]", "a step takes at least one prompt, and no batch holds more")
    group_size: int = within(16, "[1, 1048576]", "a prompt has at least one response, and no batch holds more")
    minibatches: int = within(1, "[1, 1048576]", "a step makes at least one update, and one a prompt at most")


class Optimizer(Section):
    """The optimiser of the training engine."""

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = within(1e-6, "(0, 100]", STEP_WHY)
    betas: tuple[Beta, Beta] = within((0.9, 0.95), "[0, 1)", "a moment is a decaying mean, which 1 never lets decay")
    eps: float = within(1e-8, "[1e-30, 1]", "it keeps a gradient of 0 from being divided by 0, and should do no more")
    weight_decay: float = within(0.0, "[0, 100]", "lr times it is the share of a weight that a step takes away")
    max_grad_norm: float = within(1.0, "(0, inf]", "gradients are scaled down to it; inf leaves them")


class Critic(Optimizer):
    """The optimiser of the critic, whose parameters are its own; one step beside each step of the policy."""

    lr: float = within(1e-5, "(0, 100]", STEP_WHY)


class Recipe(Section):
    """One method with its schedule; see the section classes for the keys."""

    about: About = About()
    advantage: Advantage = Advantage()
    ratio: Ratio = Ratio()
    correction: Correction = Correction()
    clip: Clip = Clip()
    aggregation: Aggregation = Aggregation()
    router_replay: RouterReplay = RouterReplay()
    schedule: Schedule = Schedule()
    optimizer: Optimizer = Optimizer()
    critic: Critic = Critic()

    @property
    def has_critic(self) -> bool:
        """Whether advantages come from a learned value of each context."""
        return self.advantage.baseline == "value"

    @property
    def over_group(self) -> bool:
        """Whether advantages are taken against the other responses of a prompt."""
        return self.advantage.baseline in ("group_mean", "leave_one_out")

    @property
    def weight_scope(self) -> Scope:
        """How much of a batch one token's weight reads, its advantage being given.

        `token` weights can be formed inside a chunk of the update's forward; the others need a pass without
        gradient first.
        """
        scope: Scope = "token"
        sequence = {"sequence_mask", "geometric_mask", "vespo", "max_kl", "mean_kl"}
        spanned = self.correction.kind in {"ratio", "truncate", "mask"} and self.correction.span != "token"
        if (self.ratio.of != "none" and self.ratio.span != "token") or spanned:
            scope = "sequence"
        if self.correction.kind in sequence or self.clip.kind == "gmpo":
            scope = "sequence"
        if self.clip.kind == "m2po" or self.aggregation.kind == "token_mean":
            scope = "batch"
        return scope

    @property
    def scope(self) -> Scope:
        """As `weight_scope`, the advantage included: a group baseline reads the group."""
        group: Scope = "group" if self.over_group else "token"
        return max(self.weight_scope, group, key=SCOPES.index)

    def with_(self, overrides: Mapping[str, Any] | None = None, /, **sections: Any) -> Recipe:
        """A copy with keys of its sections laid over, checked as a recipe that is read.

        Args:
            overrides: by dotted key.
            sections: keys by section; those that are not given stay as they are.

        Raises:
            ConfigError: an unknown key, or a recipe that contradicts itself.

        Example:
            >>> Recipe().with_({"clip.low": 0.1}, clip={"high": 0.3}).clip
            Clip(kind='none', low=0.1, high=0.3, budget=0.04)
        """
        tree = self.model_dump(exclude_unset=True)
        return build(Recipe, assign(tree, pairs(overrides or {}) + pairs(sections)))

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for broken, what in _contradictions(self):
            if broken:
                raise ValueError(what)
        return self


def _contradictions(r: Recipe) -> list[tuple[bool, str]]:
    """Every way in which the parts of a recipe can contradict each other, with its remedy."""
    c, n = r.correction, r.schedule.minibatches
    moving = r.ratio.of in ("theta/mu", "theta/old")
    bounded = c.kind in ("truncate", "mask", "sequence_mask", "geometric_mask", "max_kl", "mean_kl")
    spans = {"gspo": "geometric", "ctpo": "prefix", "gmpo": "token", "m2po": "token"}
    span = spans.get(r.clip.kind, r.ratio.span)
    return [
        (
            r.advantage.std and not r.over_group,
            f"advantage.std needs a group baseline, got advantage.baseline = {r.advantage.baseline}; "
            "choose group_mean or leave_one_out",
        ),
        (
            r.advantage.gae_lambda != 1.0 and not r.has_critic,
            f"advantage.gae_lambda = {r.advantage.gae_lambda} is read by baseline value only, got "
            f"advantage.baseline = {r.advantage.baseline}; remove it or set advantage.baseline = value",
        ),
        (
            r.critic != Critic() and not r.has_critic,
            f"[critic] trains the baseline value only, got advantage.baseline = {r.advantage.baseline}; "
            "remove it or set advantage.baseline = value",
        ),
        (
            r.over_group and r.schedule.group_size < 2,
            f"advantage.baseline = {r.advantage.baseline} needs schedule.group_size >= 2, got {r.schedule.group_size}",
        ),
        (
            r.ratio.span != "forward" and r.ratio.steps != 1,
            f"ratio.steps = {r.ratio.steps} is read by span forward only; set ratio.span = forward",
        ),
        (
            r.ratio.of == "none" and r.ratio.span != "token",
            f"ratio.span = {r.ratio.span} has no ratio to span; set ratio.of",
        ),
        (
            r.ratio.router_floor is not None and not moving,
            f"ratio.router_floor = {r.ratio.router_floor} rescales a ratio of theta, got ratio.of = {r.ratio.of}; "
            "use theta/old",
        ),
        (
            r.clip.kind in ("ppo", "gspo", "cispo", "m2po", "ctpo", "gmpo") and not moving,
            f"clip.kind = {r.clip.kind} bounds a ratio of theta, got ratio.of = {r.ratio.of}; use theta/old",
        ),
        (
            r.ratio.span != span,
            f"clip.kind = {r.clip.kind} bounds the {span} ratio, got ratio.span = {r.ratio.span}; "
            f"set ratio.span = {span} or use ppo",
        ),
        (
            r.clip.budget != Clip().budget and r.clip.kind != "m2po",
            f"clip.budget = {r.clip.budget} is read by clip.kind = m2po only, got {r.clip.kind}; remove it",
        ),
        (
            r.clip.kind in ("minirl", "ppo", "gspo", "cispo", "m2po") and r.clip.low > 1.0,
            f"clip.low must be at most 1 (a ratio is positive), got {r.clip.low}",
        ),
        (
            bounded and c.low >= c.high,
            f"correction.low must be below correction.high, got {c.low} >= {c.high}",
        ),
        (
            c.kind in ("truncate", "max_kl", "mean_kl") and c.low > 0.0,
            f"correction.low = {c.low} is not read by correction.kind = {c.kind}; remove it",
        ),
        (
            bounded and c.low <= 0.0 and c.high == float("inf"),
            f"correction.kind = {c.kind} without a bound does nothing; set correction.high",
        ),
        *(
            (
                part.lr * part.weight_decay > 1.0,
                f"{name}.lr x {name}.weight_decay = {part.lr * part.weight_decay:g} takes more than all of a weight "
                "away in a step; lower one of the two",
            )
            for name, part in (("optimizer", r.optimizer), ("critic", r.critic))
        ),
        (
            r.schedule.prompts % n != 0,
            f"schedule.prompts = {r.schedule.prompts} must be a multiple of schedule.minibatches = {n}",
        ),
        (
            r.about.scope is not None and r.about.scope != r.scope,
            f"about.scope = {r.about.scope} but the parts of the recipe make it {r.scope}",
        ),
    ]


def check_runs(recipe: Recipe) -> None:
    """Refuse a recipe whose method does not fit the form.

    Raises:
        ConfigError: with the reason that its file gives.
    """
    if recipe.about.unsupported:
        raise ConfigError(f"recipe {recipe.about.name} cannot be run: {recipe.about.unsupported}")


def fingerprint(recipe: Recipe) -> str:
    """SHA-256, in hexadecimal, of what a recipe does to a batch: its method, defaults included, and its N.

    Names, sizes of a batch and the optimizer are left out: they change from a small model to a large one.

    Example:
        >>> fingerprint(Recipe()) == fingerprint(Recipe(optimizer=Optimizer(lr=1e-3)))
        True
    """
    tree = recipe.model_dump(mode="json", exclude={"about", "schedule", "optimizer", "critic"})
    tree["minibatches"] = recipe.schedule.minibatches
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


PARTS = ("ratio", "router_floor", "clip", "correction", "router_replay")


def inert_parts(recipe: Recipe, *, stale: bool, mismatch: bool = True) -> list[str]:
    """The parts that cannot act in this schedule, one sentence each; arguments as of `inert_by_part`."""
    return list(inert_by_part(recipe, stale=stale, mismatch=mismatch).values())


def inert_by_part(recipe: Recipe, *, stale: bool, mismatch: bool = True) -> dict[str, str]:
    """The `PARTS` that cannot act in this schedule, each with a sentence that says why.

    Args:
        recipe: the method.
        stale: θ differs from θ_old at some update (N > 1, or a staleness in the simulator).
        mismatch: the two engines differ.
    """
    why = {"theta/old": "theta equals theta_old", "old/mu": "the engines agree"}
    equal = {"theta/old": not stale, "old/mu": not mismatch, "theta/mu": not stale and not mismatch}
    clip, correction, replay = recipe.clip.kind, recipe.correction.kind, recipe.router_replay.mode
    clip_reads = {"minirl": "theta/old", "tv": "theta/mu", "kl": "theta/mu"}
    correction_reads = {"max_kl": "theta/mu", "mean_kl": "theta/mu"}
    floor = recipe.ratio.router_floor
    parts = [
        (f"ratio.of = {recipe.ratio.of}", recipe.ratio.of, "the ratio is 1"),
        (f"ratio.router_floor = {floor}", "theta/old" if floor else "", "its factor is 1"),
        (f"clip.kind = {clip}", clip_reads.get(clip, recipe.ratio.of), "no ratio leaves 1"),
        (f"correction.kind = {correction}", correction_reads.get(correction, recipe.correction.of), "its ratio is 1"),
        (f"router_replay.mode = {replay}", {"R2": "theta/old", "R3": "theta/mu"}.get(replay, ""), "its own experts"),
    ]
    return {
        name: f"{part}: {why.get(reads, 'the engines agree and theta equals theta_old')}, {result}"
        for name, (part, reads, result) in zip(PARTS, parts, strict=True)
        if equal.get(reads, False) and not part.endswith(("= none", "= disabled"))
    }
