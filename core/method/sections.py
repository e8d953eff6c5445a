"""The sections of a recipe: typed settings of each part, of the schedule and of the optimisers.

Which kinds a part has stands in `core.method.parts`, a row each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from firstorder.core.settings.section import COUNT_WHY, Section, within

from .parts import AGGREGATIONS, BASELINES, CLIPS, CORRECTIONS, RATIOS, SPANS, Policies, Scope

if TYPE_CHECKING:  # a type checker takes no literals that are made from a table
    AggregationKind = str
    Baseline = str
    ClipKind = str
    CorrectionKind = str
    RatioOf = str
    Span = str
else:
    AggregationKind = Literal[tuple(AGGREGATIONS)]
    Baseline = Literal[tuple(BASELINES)]
    ClipKind = Literal[tuple(CLIPS)]
    CorrectionKind = Literal[tuple(CORRECTIONS)]
    RatioOf = Literal[tuple(RATIOS)]
    Span = Literal[tuple(SPANS)]

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

    baseline: Baseline = "group_mean"
    std: bool = False
    gae_lambda: float = within(
        1.0, "[0, 1]", "λ weighs the sampled reward", "λ of baseline `value`; 1 keeps the sampled reward"
    )

    @property
    def over_group(self) -> bool:
        """Whether the baseline is taken over the responses of one prompt."""
        return BASELINES[self.baseline].scope == "group"


class Ratio(Section):
    """The importance ratio that multiplies the advantage: `core.method.ratio`."""

    of: RatioOf = "theta/mu"
    span: Span = "token"
    steps: int = within(1, "[1, 16777216]", "no response is longer", "tokens of the `forward` span")
    router_floor: float | None = within(
        None, "(0, 1)", "it multiplies a ratio", "multiply by exp(-router shift), at least this: `core.method.shift`"
    )


class Correction(Section):
    """A further factor made from a ratio: `core.method.correction`. `low`, `high` are its bounds where the kind has
    any."""

    kind: CorrectionKind = "none"
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

    kind: ClipKind = "none"
    low: float = within(0.2, "[0, 1000000]", "it is a distance from the ratio 1")
    high: float = within(0.27, "(0, 1000000]", "a wider clip never acts; set clip.kind = none instead")
    budget: float = within(0.04, "(0, 1000000]", "it is a mean square of log-ratios, which `m2po` allows")


class Aggregation(Section):
    """What divides a token's weight: nothing, |y|^alpha, the batch's token count, or a constant."""

    kind: AggregationKind = "token_sum"
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
