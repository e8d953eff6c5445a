"""The sections of a recipe: typed settings of each part, of the schedule and of the optimisers.

Which kinds a part has stands in `core.method.parts`, a row each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from firstorder.core.settings.section import COUNT_WHY, Section, within

from .parts import (
    AGGREGATIONS,
    BASELINES,
    CLIPS,
    CORRECTIONS,
    OVERS,
    RATIOS,
    REJECTIONS,
    SCALES,
    SPANS,
    Policies,
    Scope,
)
from .term_kinds import ESTIMATORS

if TYPE_CHECKING:  # a type checker takes no literals that are made from a table
    AggregationKind = str
    Baseline = str
    ClipKind = str
    CorrectionKind = str
    EstimatorKind = str
    Over = str
    RatioOf = str
    RejectionKind = str
    Scale = str
    Span = str
else:
    AggregationKind = Literal[tuple(AGGREGATIONS)]
    Baseline = Literal[tuple(BASELINES)]
    ClipKind = Literal[tuple(CLIPS)]
    CorrectionKind = Literal[tuple(CORRECTIONS)]
    EstimatorKind = Literal[tuple(ESTIMATORS)]
    Over = Literal[tuple(OVERS)]
    RatioOf = Literal[tuple(RATIOS)]
    RejectionKind = Literal[tuple(REJECTIONS)]
    Scale = Literal[tuple(SCALES)]
    Span = Literal[tuple(SPANS)]

Exponent = Annotated[float, Field(ge=0.0, le=100.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Temperature = Annotated[float, Field(gt=0.0, le=1000.0)]
STEP_WHY = "AdamW moves a weight by about lr a step, and weights are of the order of 1"


class About(Section):
    """What the recipe is called, where it comes from and how far a weight of it looks."""

    name: str = Field(
        "custom",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$",
        description="what reports call it",
        json_schema_extra={"why": "a name is 1 to 80 letters, digits, dots, hyphens and underscores, no sign first"},
    )
    summary: str = Field("", description="one line")
    source: str = Field("", description="the paper or code that it follows, one line")
    scope: Scope | None = Field(None, description="declared scope, checked against the parts")
    unsupported: str | None = Field(
        None, description="why the method does not fit the form; such a recipe is listed and refused"
    )


class Advantage(Section):
    """Baseline over the responses of one prompt (`core.method.advantage`), or `value`, a learned one
    (`core.method.value`)."""

    baseline: Baseline = Field("group_mean", description="what A subtracts from the reward")
    std: bool = Field(
        False,
        description="divide by the group's sample standard deviation plus 1e-6; not with `none` or `value`",
    )
    gae_lambda: float = within(
        1.0,
        "[0, 1]",
        "λ weighs the sampled reward",
        "λ of `value`: at 1, A_t = R - V(c_t); below, later values stand in for a part of R; refused with other "
        "baselines",
    )

    scale: Scale = Field("none", description="what the whole batch of a rollout makes of the advantages")

    @property
    def over_group(self) -> bool:
        """Whether the baseline is taken over the responses of one prompt."""
        return BASELINES[self.baseline].scope == "group"


class Ratio(Section):
    """The importance ratio that multiplies the advantage: `core.method.ratio`."""

    of: RatioOf = Field("theta/mu", description="the two policies, or no ratio")
    span: Span = Field("token", description="the tokens whose ratios are multiplied")
    steps: int = within(1, "[1, 16777216]", "no response is longer", "tokens of `forward`; 1 for every other span")
    router_floor: float | None = within(
        None,
        "(0, 1)",
        "it multiplies a ratio",
        "r is multiplied by max(router_floor, exp(-mean |log router_θ - log router_old|)) before any clip, the mean "
        "over layers and the experts that π_old used; unset: r as it is",
    )


class Correction(Section):
    """A further factor made from a ratio: `core.method.correction`. `low`, `high` are its bounds where the kind has
    any."""

    kind: CorrectionKind = Field("none", description="the factor, a function of the ratio k")
    of: Policies = Field("old/mu", description="the two policies of k")
    span: Span = Field("token", description="as of `[ratio]`; read by `ratio`, `truncate` and `mask`")
    low: float = within(
        0.0, "[0, 1000000]", "ratios beyond it are never met, so that all would be masked", "lower bound"
    )
    high: float = within(float("inf"), "(0, inf]", "a ratio is positive; inf is no bound", "upper bound")
    positive: tuple[Exponent, Exponent] = within(
        (2.0, 3.0), "[0, 100]", "they are exponents of a weight", "(c1, c2) of `vespo` for A > 0"
    )
    negative: tuple[Exponent, Exponent] = within(
        (3.0, 2.0), "[0, 100]", "they are exponents of a weight", "(c1, c2) of `vespo` for A ≤ 0"
    )
    mean_one: bool = Field(
        False,
        description="divide by the mean of the factor over the batch: over response tokens, or over responses where it "
        "is one a response",
    )

    @property
    def of_response(self) -> bool:
        """Whether all tokens of a response have one factor."""
        return CORRECTIONS[self.kind].scope == "sequence" or self.span in ("sequence", "geometric")


class Rejection(Section):
    """Which tokens or responses are left out, whatever their correction is: `core.method.rejection`. v_t is made of
    D_t, the log of a token's ratio."""

    kind: RejectionKind = Field("none", description="v_t")
    of: Policies = Field("old/mu", description="the two policies of D; not read by `kl`")
    over: Over = Field("token", description="what is judged: a token's v_t, or one number of its response")
    low: float = within(
        float("-inf"), "[-inf, 1000000]", "what lies above it is never met, so that all would go", "least that is kept"
    )
    high: float = within(float("inf"), "[-1000000, inf]", "inf is no bound", "most that is kept")
    where: Literal["always", "negative"] = Field(
        "always", description="`negative`: only where A < 0 is anything left out"
    )


class Clip(Section):
    """How far the target may move: `core.method.clip`. Ratio clips bound r to [1 - low, 1 + high], `ctpo` and `gmpo`
    bound log r; `tv` and `kl` use `high`."""

    kind: ClipKind = Field("none", description="the rule")
    low: float = within(
        0.2,
        "[0, 1000000]",
        "it is a distance from the ratio 1",
        "the ratio's lower bound is 1 - low, and -low of log r in `ctpo` and `gmpo`; not read by `tv`, `kl`, `sapo`",
    )
    high: float = within(
        0.27,
        "(0, 1000000]",
        "a wider clip never acts; set clip.kind = none instead",
        "the ratio's upper bound is 1 + high; high bounds log r in `ctpo`, `gmpo` and the divergence in `tv`, `kl`",
    )
    budget: float = within(
        0.04, "(0, 1000000]", "it is a mean square of log-ratios", "mean square of log r that `m2po` allows"
    )
    cap: float = within(3.0, "(1, 1000000]", "a ratio that has not moved is 1", "largest ratio of `dual` where A < 0")
    temperature: tuple[Temperature, Temperature] = within(
        (1.0, 1.05), "(0, 1000]", "the higher, the narrower", "τ of `sapo` for A > 0 and for A ≤ 0"
    )


class Aggregation(Section):
    """What divides a token's weight: nothing, |y|^alpha, the batch's token count, or a constant."""

    kind: AggregationKind = Field("token_sum", description="norm_t, which divides the weight of a token")
    alpha: float = within(1.0, "[0, 1]", "0 is a sum over tokens and 1 their mean", "exponent of `length`")
    constant: float = within(1.0, "[1e-6, 1e12]", "it divides the weight of every token", "divisor of `constant`")


COEFFICIENT = "[0, 1000000]"
COEFFICIENT_WHY = "below 0 a term would turn round, and a larger one leaves nothing of the reward"


class Terms(Section):
    """Terms of the loss beside the weighted log-probs, each with its coefficient, 0 for none: `core.method.terms`. They
    are divided as weights are, and no clip, correction or mask touches them."""

    reference_kl: float = within(
        0.0,
        COEFFICIENT,
        COEFFICIENT_WHY,
        "β of + β KL(π_θ ‖ π_ref); π_ref is the training engine at the weights that the run started from, under the "
        "replay of the recipe",
    )
    reference_estimator: EstimatorKind = Field("k3", description="what a token gives of that KL, and its gradient")
    entropy: float = within(0.0, COEFFICIENT, COEFFICIENT_WHY, "e of - e H(π_θ), the entropy bonus")
    squared_log_ratio: float = within(0.0, COEFFICIENT, COEFFICIENT_WHY, "c of + c (log r)²")
    squared_of: Literal["theta/mu", "theta/old"] = Field("theta/mu", description="the two policies of that r")

    @property
    def active(self) -> bool:
        """Whether there is any term."""
        return bool(self.reference_kl or self.entropy or self.squared_log_ratio)

    def compared(self, name: str) -> str | None:
        """The two policies that a term is idle between where they agree; None without it, or if none silences it."""
        if name == "reference_kl" and self.reference_estimator != "k1":  # the gradient of k1 is 1 wherever it is taken
            return "theta/ref" if self.reference_kl else None
        return self.squared_of if name == "squared_log_ratio" and self.squared_log_ratio else None


class RouterReplay(Section):
    """Whose experts the target replays, nobody's, π_old's (R2) or μ_old's (R3), and which of them: `core.routing`.

    A text is read as one too: `R3`, or as `str` writes it, `R3 condition=0.5`.
    """

    mode: Literal["disabled", "R2", "R3"] = Field("disabled", description="whose experts are used")
    gates: Literal["live", "replayed"] = Field(
        "live",
        description="`live`: gate weights from the scores of π, so that its router learns; `replayed`: those of the "
        "engine whose experts are used, constants that leave its router no gradient",
    )
    margin: float | None = within(
        None,
        "(0, 1000000]",
        "a margin is a difference of router scores",
        "replay only rows whose live choice has a k-th less than so far above the (k+1)-th score; unset: all rows",
    )
    condition: float = within(
        0.0,
        "[0, 1]",
        "it is a share of a score",
        "an expert that is replayed stays if its live score is at least so many times that of the weakest live expert, "
        "and gives way to the best live one else; 0 replays all, 1 routes live",
    )

    @model_validator(mode="before")
    @classmethod
    def _text_is_a_spelling(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        mode, *settings = given.split() or [""]
        read: dict[str, Any] = {"mode": mode}
        for key, _, value in (each.partition("=") for each in settings):
            read[key] = value if key == "gates" else float(value)
        return read

    @property
    def ruled(self) -> bool:
        """Whether a row that is given experts may use others, all or some."""
        return self.margin is not None or self.condition > 0.0

    def __str__(self) -> str:
        """Its mode, then what it sets besides: the name of its target among others."""
        rest = {key: value for key, value in self if key != "mode" and value != type(self).model_fields[key].default}
        return " ".join([self.mode, *(f"{key}={value}" for key, value in rest.items())])


class Schedule(Section):
    """A global step: `prompts` × `group_size` responses, split into `minibatches` updates (the N of the paper)."""

    steps: int = within(100, "[1, 1000000000]", COUNT_WHY, "global steps")
    prompts: int = within(
        64,
        "[1, 1048576]",
        "a step takes at least one prompt, and no batch holds more",
        "prompts of a rollout; a multiple of `minibatches`",
    )
    group_size: int = within(
        16, "[1, 1048576]", "a prompt has at least one response, and no batch holds more", "responses to a prompt"
    )
    minibatches: int = within(
        1,
        "[1, 1048576]",
        "a step makes at least one update, and one a prompt at most",
        "updates a rollout, the N of the paper",
    )


class Steps(Section):
    """An optimiser."""

    kind: Literal["adamw", "sgd"] = Field("adamw", description="the rule of a step")
    lr: float = within(1e-6, "(0, 100]", STEP_WHY, "learning rate")
    betas: tuple[Beta, Beta] = within(
        (0.9, 0.95), "[0, 1)", "a moment is a decaying mean, which 1 never lets decay", "decay of AdamW's two moments"
    )
    eps: float = within(
        1e-8,
        "[1e-30, 1]",
        "it keeps a gradient of 0 from being divided by 0, and should do no more",
        "added to AdamW's divisor",
    )
    weight_decay: float = within(
        0.0, "[0, 100]", "lr times it is the share of a weight that a step takes away", "decoupled from the gradient"
    )
    max_grad_norm: float = within(
        1.0, "(0, inf]", "gradients are scaled down to it; inf leaves them", "largest norm of a gradient"
    )


class Optimizer(Steps):
    """The optimiser of the training engine."""

    step_scale: Literal["ess"] | None = Field(
        None,
        description="`ess`: lr of each update times sqrt(ESS / B), ESS the effective sample size of the B sequence "
        "weights Π π_θ/μ (arXiv 2602.17616), of an expected update the limit of large B; unset: lr as it is",
    )


class Critic(Steps):
    """The optimiser of the critic, whose parameters are its own; one step beside each step of the policy."""

    lr: float = within(1e-5, "(0, 100]", STEP_WHY, "learning rate")
