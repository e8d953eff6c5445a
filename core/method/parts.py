"""The parts of a token's weight: a row a kind, with all that recipes, the loop, the simulator and the pages ask of it.

    w_t = A · clip(ratio)_t · correction_t · kept_t / norm_t

The mathematics of a row is the function of the same key in `FUNCTIONS` of its part's module (`core.method.ratio`,
`correction`, `rejection`, `clip`, `aggregation`, `advantage`, `scale`). Nothing here needs torch, so that a recipe is
read without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Scope = Literal["token", "sequence", "group", "batch"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
Policies = Literal["theta/mu", "theta/old", "old/mu"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of a part.

    Args:
        formula: what it makes, in the letters of docs/recipes.md.
        source: paper and equation, or who else has it.
        scope: how much of a batch one token's share of it reads; that of a span comes on top.
        compares: the policies that it is idle between where they agree; `of` if its section names them, which for a
            clip is [ratio]; None if it compares none.
        keys: of its section, those that it reads.
        span: the one span that [ratio] must have beside it; None for any.
        logarithmic: its bounds are distances of log r from 0, not of r from 1.
        needs: what it reads of `TokenStats` that no rollout carries.
        signs: it reads the signs of the other responses' advantages. Apart from signs, no part reads an advantage.
    """

    formula: str
    source: str = "firstorder"
    scope: Scope = "token"
    compares: Policies | Literal["of"] | None = None
    keys: tuple[str, ...] = ()
    span: str | None = None
    logarithmic: bool = False
    needs: str | None = None
    signs: bool = False


Table = Mapping[str, Part]

RATIOS: Table = {
    "none": Part(formula="1", source="REINFORCE, Williams 1992"),
    "theta/mu": Part(formula="π_θ/μ", source="arXiv 2512.01374 eq. (4)", compares="theta/mu"),
    "theta/old": Part(formula="π_θ/π_old", source="PPO, arXiv 1707.06347", compares="theta/old"),
    "old/mu": Part(formula="π_old/μ", source="arXiv 2512.01374 eq. (5)", compares="old/mu"),
}

SPANS: Table = {
    "token": Part(formula="ρ_t", source="arXiv 2512.01374 eq. (3)"),
    "prefix": Part(formula="Π_{s≤t} ρ_s", source="CTPO, arXiv 2605.07331", scope="sequence"),
    "sequence": Part(formula="Π_s ρ_s", source="arXiv 2512.01374 eq. (2)", scope="sequence"),
    "geometric": Part(formula="(Π_s ρ_s)^(1/|y|)", source="GSPO, arXiv 2507.18071 eq. (7)", scope="sequence"),
    "turn": Part(formula="Π_s ρ_s over the tokens of a turn", scope="sequence"),
    "turn_geometric": Part(
        formula="the same to the power 1 over the tokens of the turn",
        source="Turn-PPO of ST-PPO, arXiv 2511.20718 eq. (4)",
        scope="sequence",
    ),
    "forward": Part(formula="Π_{t≤s<t+steps} ρ_s", source="NFPO, arXiv 2605.20865", scope="sequence", keys=("steps",)),
    "min_prefix": Part(formula="ρ_t · min_{s<t} ρ_s", source="MinPRO, arXiv 2601.22718", scope="sequence"),
}

ROUTER_FLOOR = Part(
    formula="r · max(router_floor, exp(-mean |log router_θ - log router_old|))",
    source="RSPO, arXiv 2510.23027v2",
    compares="theta/old",
    needs="router_shift",
)

MEAN_ONE = Part(
    formula="the correction over its mean over the batch",
    source="verl rollout_is_batch_normalize",
    scope="batch",
    compares="of",
)

CORRECTIONS: Table = {
    "none": Part(formula="1"),
    "ratio": Part(
        formula="k", source="decoupled PPO, arXiv 2505.24298", compares="of", keys=("of", "span", "mean_one")
    ),
    "truncate": Part(
        formula="max(low, min(k, high))",
        source="TIS, Yao et al. 2025; with low, TRL vllm_importance_sampling_clip_min",
        compares="of",
        keys=("of", "span", "low", "high", "mean_one"),
    ),
    "mask": Part(
        formula="k if low ≤ k ≤ high, else 0",
        source="IcePop, arXiv 2510.18855",
        compares="of",
        keys=("of", "span", "low", "high", "mean_one"),
    ),
    "vespo": Part(
        formula="W^c1 · exp(c2 (1 - W)), W = Π k",
        source="VESPO, arXiv 2602.10693",
        scope="sequence",
        compares="of",
        keys=("of", "positive", "negative", "mean_one"),
    ),
}

_JUDGED = ("of", "over", "low", "high", "where")
REJECTIONS: Table = {
    "none": Part(formula="nothing is rejected"),
    "ratio": Part(
        formula="exp D_t; over a response the product, geometric mean or largest",
        source="verl rollout correction, sequence-level masked importance sampling and preset geo_mis",
        compares="of",
        keys=_JUDGED,
    ),
    "k1": Part(
        formula="-D_t",
        source="verl rollout_rs *_k1, whose bounds are exp low and exp high; DeepSeek-V3.2, arXiv 2512.02556 eq. (9)",
        compares="of",
        keys=_JUDGED,
    ),
    "k2": Part(formula="D_t² / 2", source="verl rollout_rs *_k2", compares="of", keys=_JUDGED),
    "k3": Part(formula="exp D_t - 1 - D_t", source="verl rollout_rs *_k3", compares="of", keys=_JUDGED),
    "kl": Part(
        formula="KL(μ(.|c_t) ‖ π_θ(.|c_t))",
        source="Trust Region Masking, arXiv 2512.23075: TRM-Max over max, TRM-Avg over mean",
        compares="theta/mu",
        keys=_JUDGED[1:],
        needs="kl_mu",
    ),
}

OVERS: Table = {
    "token": Part(formula="v_t, so that tokens are rejected", source="verl rollout_rs token_*"),
    "sum": Part(formula="Σ_t v_t", source="verl rollout_rs seq_sum_*", scope="sequence"),
    "mean": Part(formula="mean_t v_t", source="verl rollout_rs seq_mean_*", scope="sequence"),
    "max": Part(formula="max_t v_t", source="verl rollout_rs seq_max_*", scope="sequence"),
}

CLIPS: Table = {
    "none": Part(formula="r"),
    "minirl": Part(
        formula="sign-aware mask on the token ratio π_θ/π_old, whatever `[ratio]` is",
        source="arXiv 2512.01374 eq. (7)",
        compares="theta/old",
        keys=("low", "high"),
    ),
    "ppo": Part(
        formula="sign-aware mask on the ratio itself",
        source="arXiv 1707.06347 eq. (7)",
        compares="of",
        keys=("low", "high"),
    ),
    "dual": Part(
        formula="as `ppo`; where A < 0 a ratio above cap is dropped as well",
        source="dual-clip PPO, arXiv 1912.09729; two-sided clip, arXiv 2505.07291",
        compares="of",
        keys=("low", "high", "cap"),
    ),
    "gspo": Part(
        formula="as `ppo`, on the geometric ratio",
        source="arXiv 2507.18071 eq. (5)",
        compares="of",
        keys=("low", "high"),
        span="geometric",
    ),
    "cispo": Part(
        formula="r clamped to the bounds, no token dropped",
        source="arXiv 2506.13585",
        compares="of",
        keys=("low", "high"),
    ),
    "sapo": Part(
        formula="r · sech²(τ (r - 1) / 2), τ of `temperature`: the first where A > 0, else the second",
        source="SAPO, arXiv 2511.20347",
        compares="of",
        keys=("temperature",),
    ),
    "tv": Part(
        formula="sign-aware mask where |π_θ(y_t) - μ(y_t)| > high",
        source="DPPO, arXiv 2602.04879",
        compares="theta/mu",
        keys=("high",),
    ),
    "kl": Part(
        formula="sign-aware mask where KL(Bernoulli μ(y_t) ‖ Bernoulli π_θ(y_t)) > high",
        source="DPPO, arXiv 2602.04879",
        compares="theta/mu",
        keys=("high",),
    ),
    "m2po": Part(
        formula="as `ppo`, between min(1 - low, exp -τ) and max(1 + high, exp τ), τ from `budget` and the whole batch",
        source="arXiv 2510.01161",
        scope="batch",
        compares="of",
        keys=("low", "high", "budget"),
        span="token",
        signs=True,
    ),
    "ctpo": Part(
        formula="sign-aware mask where log r is above high·√t or below -low·√t; both bounds hold where A < 0",
        source="arXiv 2605.07331",
        compares="of",
        keys=("low", "high"),
        span="prefix",
        logarithmic=True,
    ),
    "gmpo": Part(
        formula="geometric mean of the response's token ratios, log r held at high where A > 0 and at -low where "
        "A < 0; a token that is held is dropped",
        source="arXiv 2507.20673",
        scope="sequence",
        compares="of",
        keys=("low", "high"),
        span="token",
        logarithmic=True,
    ),
}

AGGREGATIONS: Table = {
    "token_sum": Part(formula="1", source="arXiv 2512.01374 eq. (3)"),
    "length": Part(formula="|y|^alpha", source="GRPO, arXiv 2402.03300", keys=("alpha",)),
    "token_mean": Part(formula="the batch's mean length", source="DAPO, arXiv 2503.14476", scope="batch"),
    "constant": Part(formula="constant", source="Dr. GRPO, arXiv 2503.20783", keys=("constant",)),
}

BASELINES: Table = {
    "none": Part(formula="0", source="REINFORCE, Williams 1992"),
    "group_mean": Part(
        formula="the mean of the group, the response itself included",
        source="GRPO, arXiv 2402.03300",
        scope="group",
        keys=("std",),
    ),
    "leave_one_out": Part(
        formula="the mean of the group's other responses",
        source="RLOO, arXiv 2402.14740",
        scope="group",
        keys=("std",),
    ),
    "value": Part(
        formula="a learned value of each context, so that every token has an advantage of its own",
        source="GAE, arXiv 1506.02438 eq. (16)",
        keys=("gae_lambda",),
    ),
}

SCALES: Table = {
    "none": Part(formula="A"),
    "batch_std": Part(
        formula="A / std of the batch's rewards",
        source="TRL scale_rewards batch; arXiv 2508.08221",
        scope="batch",
    ),
    "whiten": Part(
        formula="(A - mean) / std of A, both over the response tokens of the batch",
        source="REINFORCE++, arXiv 2501.03262",
        scope="batch",
    ),
}

REPLAYS: Table = {
    "disabled": Part(formula="π_θ chooses its own experts"),
    "R2": Part(formula="π_θ uses the experts that π_old chooses", source="arXiv 2512.01374", compares="theta/old"),
    "R3": Part(
        formula="π_θ, and π_old in every ratio, use the experts that μ_old chooses",
        source="arXiv 2512.01374",
        compares="theta/mu",
    ),
}


def readers(table: Table, key: str) -> str:
    """The kinds of a table that read a key of its section, joined by commas.

    Example:
        >>> readers(CLIPS, "budget")
        'm2po'
    """
    return ", ".join(kind for kind, part in table.items() if key in part.keys)
