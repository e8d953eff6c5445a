"""The `[sim]` section: the tiny policy, its prompts, its two engines and how stale the target is."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from firstorder.core.method.recipe import STEP_WHY
from firstorder.core.router import MAX_EXPERTS, Router, RouterKind, check_router
from firstorder.core.router import SIZE as ROUTER
from firstorder.core.router import SIZE_WHY as ROUTER_WHY
from firstorder.core.settings.section import COUNT_WHY, SEED, SEED_WHY, Section, within

from ..engine import Numerics
from .contradictions import MAX_PROMPTS, check_chain, check_sizes

DEFAULT_POOL = 64
MODES = 4  # of a context of `chain`
SIZE, SIZE_WHY = "[1, 65536]", "a tiny policy is measured exactly; its tensors grow with it"


class Sim(Section):
    """Sizes, engines and staleness of an exact experiment. Lengths are in tokens."""

    world: Literal["tree", "graph"] = Field(
        "tree",
        description="`tree` enumerates every response; `graph` walks contexts that merge, as those of `task = chain` "
        "do, at any length",
    )
    vocab: int = within(
        4, "[2, 65536]", SIZE_WHY, "tokens; token 0 ends a response, but in `chain` with `ending = horizon`"
    )
    horizon: int = within(5, "[1, 1048576]", "a tree enumerates every response", "longest response")
    prompts: int = within(4, f"[1, {MAX_PROMPTS}]", SIZE_WHY, "prompts measured, equally likely")
    prompt_length: int = within(
        2, "[1, 32]", "prompts are a table of every word of so many tokens", "tokens of a prompt"
    )
    layers: int = within(2, "[1, 1024]", SIZE_WHY, "MoE layers")
    experts: int = within(8, f"[2, {MAX_EXPERTS}]", ROUTER_WHY, "experts of a layer")
    top_k: int = within(2, ROUTER, ROUTER_WHY, "experts that a token visits")
    router: RouterKind = Field("softmax_topk", description="how experts are chosen and their gates made")
    groups: int = within(2, ROUTER, ROUTER_WHY, "expert groups; read by `router = group_limited`")
    limited_groups: int = within(1, ROUTER, ROUTER_WHY, "groups that a token may use; read by `router = group_limited`")
    width: int = within(16, SIZE, SIZE_WHY, "width of the residual stream")
    expert_width: int = within(16, SIZE, SIZE_WHY, "hidden width of an expert")
    sharpness: float = within(
        1.5,
        "(0, 100]",
        "above it every token but one has probability 0 in float64",
        "standard deviation of the initial output logits",
    )
    temperature: float = within(
        1.0, "[0.01, 100]", "below it sampling is greedy, above it uniform", "of sampling, in both engines"
    )
    seed: int = within(0, SEED, SEED_WHY, "of the weights; the noise of an engine has its own, `numerics.seed`")
    task: Literal["sum", "program", "text", "guess", "chain"] = Field("sum", description="what is to be learnt")
    turn_length: int = within(
        1,
        "[1, 1048576]",
        "a turn is a part of sim.horizon",
        "tokens of a turn, after each of which an environment answers; read by `task = guess`, and by `chain` with "
        "`feedback`",
    )
    positions: int = within(8, SIZE, SIZE_WHY, "positions of a problem, one after the other and round; read by `chain`")
    right: int = within(1, SIZE, SIZE_WHY, "tokens that are right at a position; read by `chain`")
    shared: float = within(
        0.5,
        "[0, 1]",
        "it is a share",
        "share of their features that contexts off the chain have in common with those on it; read by `chain`",
    )
    ending: Literal["horizon", "answer"] = Field(
        "horizon",
        description="`horizon`: every response is cut, and earns 1 if it is on the chain; `answer`: token 0 ends it, "
        "which earns at the last position of the chain; read by `chain`",
    )
    recovery: int = within(
        0, "[0, 65536]", SIZE_WHY, "tokens that lead from off the chain back onto it; read by `chain`"
    )
    thinking: int = within(
        0,
        "[0, 65536]",
        SIZE_WHY,
        "tokens that keep the position and make twice as many tokens right there; read by `chain` with "
        "`ending = answer`",
    )
    feedback: bool = Field(
        False,
        description="after every `turn_length` tokens the environment says whether the chain still holds, and twice as "
        "many recovery tokens work for who was told that it is lost; read by `chain`",
    )
    tail: float = within(
        0.0,
        "[0, 100]",
        "beyond it one wrong token has it all",
        "exponent of Zipf's law among the wrong tokens that the cold start teaches, 0 for all alike; read by "
        "`coldstart = calibrated`",
    )
    reward: Literal["binary", "graded"] | None = Field(
        None,
        description="`binary`: all or nothing; `graded`: in part; unset: binary for `sum` and `chain`, else graded",
    )
    truncated: Literal["scored", "zero"] = Field(
        "scored", description="a response cut at the horizon earns its reward (`scored`) or 0 (`zero`)"
    )
    numerics: Numerics = Field(Numerics(kind="noise"), description="the inference engine")
    min_p: float = within(
        0.0, "[0, 1)", "it is a share", "μ leaves out what is less likely than so much of its likeliest token"
    )
    sample_top_k: int = within(
        0,
        "[0, 65536]",
        SIZE_WHY,
        "μ samples from so many of its likeliest tokens, those as likely as the last too; 0: all",
    )
    top_p: float = within(
        1.0, "(0, 1]", "it is a share", "μ samples from its likeliest tokens up to so much of what the two above leave"
    )
    sampling_mask: Literal["replayed", "ignored"] = Field(
        "replayed",
        description="`replayed`: π is renormalised over the tokens that μ samples from; `ignored`: π keeps all tokens, "
        "and the ratio no longer has mean 1; read where one of the three above leaves something out",
    )
    training_numerics: Numerics = Field(Numerics(kind="exact"), description="the training engine; `batch` is refused")
    samples: int = within(
        64,
        "[2, 1000000]",
        COUNT_WHY,
        "responses drawn for what has no exact form; read by `world = graph`, `numerics.fresh` and `reading_noise`",
    )
    draws: int = within(
        32,
        "[2, 65536]",
        "an interval needs two at least",
        "draws averaged over; read by `numerics.kind = batch`, `numerics.fresh` and `reading_noise`",
    )
    missing: float = within(
        0.0,
        "[0, 1)",
        "with all rows missing nothing arrives to replay",
        "share of contexts whose last token's routes μ does not send, in any layer; those rows are left to π's router",
    )
    missing_prefix: int = within(
        0,
        "[0, 31]",
        "a prompt has up to 32 tokens, and no cache spares an engine the last",
        "first tokens of the prompt whose routes μ does not send, as a prefix cache does not",
    )
    reading_noise: float = within(
        0.0,
        "[0, 10]",
        "beyond it readings say nothing",
        "standard deviation, in nats, of a fresh error in every log-prob that μ records, tokens and rewards as "
        "without; a reading above 0 is 0",
    )
    coldstart: Literal["none", "terse", "verbose", "roundabout", "calibrated"] = Field(
        "none",
        description="`none`: random weights; `calibrated`, of `chain` alone: taught what is right, then as sharp as "
        "earns `coldstart_value`; the others: demonstrations of that style distilled into them first",
    )
    coldstart_share: float = within(
        0.75, "(0, 1]", "it is a share", "share of the demonstrations that are correct; not read by `calibrated`"
    )
    coldstart_value: float = within(
        0.25,
        "(0, 1)",
        "a policy that earns nothing or all has nothing to learn",
        "mean reward of the training engine's policy, in exact arithmetic, to begin with; read by "
        "`coldstart = calibrated`",
    )
    coldstart_steps: int = within(100, "[1, 1000000]", COUNT_WHY, "supervised steps of a cold start")
    coldstart_lr: float = within(0.01, "(0, 100]", STEP_WHY, "learning rate of those steps")
    pool: int | None = within(
        None,
        f"[1, {MAX_PROMPTS}]",
        "prompts are a table",
        "training prompts, the measured ones among them; unset: as many as there are, up to 64",
        example=8,
    )
    members: int = within(
        1,
        "[1, 1048576]",
        "they are trained in one batch",
        "policies trained at once as one batched computation, their seeds counting up from `seed`",
    )
    checkpoint_every: int = within(20, "[1, 1000000000]", COUNT_WHY, "steps between checkpoints")
    evaluate_every: int = within(
        10, "[0, 1000000000]", COUNT_WHY, "steps between exact evaluations of π and μ; 0 for none"
    )
    staleness: int = within(
        0,
        "[0, 10000]",
        "each is an exact gradient, and theta leaves theta_old",
        "gradient steps from θ_old to θ, on other prompts than those measured",
    )
    lr: float = within(0.1, "(0, 100]", "weights are of the order of 1", "step size of those steps")
    update: Literal["sampled", "expected"] = Field(
        "sampled",
        description="what a training step follows: the mean over its responses, or the exact expected update on the "
        "training prompts, the limit of an infinite batch; responses are then drawn for the logs alone",
    )
    update_contexts: Literal["all", "on_chain"] = Field(
        "all",
        description="of an expected update, of `chain` in `world = graph`: `on_chain` leaves out contexts off the "
        "chain, where none but failing responses come unless `recovery` leads back",
    )
    direction: Literal["natural", "recipe"] = Field(
        "natural",
        description="of those steps: the exact ∇J_seq of the natural target, or the recipe's own expected update, "
        "which `numerics.kind = batch` has none of",
    )

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
        """Prompts that exist: every word of `prompt_length` tokens 1 to V-1, or the problems of `chain`, as many as are
        trained on, measured, or move θ."""
        if self.task == "chain":
            return max(self.pool or 0, 2 * self.prompts)
        return int((self.vocab - 1) ** self.prompt_length)

    @property
    def training_prompts(self) -> int:
        """The size of the pool."""
        if self.task == "chain":
            return self.pool or self.prompts
        return self.pool or min(max(self.prompts, DEFAULT_POOL), self.available)

    @property
    def taught(self) -> float:
        """What `calibrated` teaches right tokens: J = share^n over the n tokens that must be right, share = J^(1/n)."""
        tokens = self.horizon if self.ending == "horizon" else self.positions
        return float(self.coldstart_value ** (1 / tokens))

    @property
    def graded(self) -> bool:
        """Whether the reward has levels between 0 and 1."""
        return self.reward == "graded" or (self.reward is None and self.task not in ("sum", "chain"))

    @property
    def truncates(self) -> bool:
        """Whether μ samples from fewer tokens than there are."""
        return bool(self.min_p or self.sample_top_k) or self.top_p < 1

    @property
    def random_readings(self) -> bool:
        """Whether what μ records of a token is drawn anew at each."""
        return self.numerics.drawn or self.reading_noise > 0

    @property
    def passes(self) -> int:
        """What is recorded of an edge, how many numbers."""
        return self.draws if self.random_readings else 1

    @property
    def carries(self) -> bool:
        """Whether the policy carries a state from token to token: not where contexts are rows of features."""
        return self.task != "chain"

    @property
    def inputs(self) -> int:
        """Rows of the embedding: tokens, or features of contexts (`sim.tasks.places`)."""
        return self.vocab if self.carries else 2 * (self.available + self.positions) + MODES + self.phases

    @property
    def places(self) -> int:
        """Contexts of a problem of `chain`: positions, by mode and phase (`sim.tasks.places`)."""
        return self.positions * (2 + (self.thinking > 0) + self.feedback) * self.phases

    @property
    def phases(self) -> int:
        """Places within a turn that a context of `chain` may have: one where nobody answers."""
        return self.turn_length if self.feedback else 1

    @property
    def first(self) -> int:
        """The first token that a response goes on after: 1 where token 0 ends it, else 0."""
        return 0 if self.task == "chain" and self.ending == "horizon" else 1

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        check_router(self.routing)
        check_sizes(self)
        check_chain(self)
        return self

    @property
    def special(self) -> int:
        """Tokens that mean something somewhere in a problem of `chain`: right, thinking or recovery."""
        right = self.right * (2 if self.thinking else 1)
        return right + self.thinking + self.recovery * (2 if self.feedback else 1)
