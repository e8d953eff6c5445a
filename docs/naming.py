"""What a name means in which framework: what the conformance run tries with real code, and what was read in sources.

Statements that a row of `backends.peers.rows` tries come from `core.conformance.terms`, or name their row here. All
else was read: `READ` says where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import agreement
import tables
from firstorder.core.conformance.terms import FRAMEWORKS, TERMS, Meaning

READ: Mapping[str, str] = {
    "verl": "verl main: `trainer/ppo`, `workers/config`",
    "slime": "THUDM/slime 002fa9d: `slime/utils/arguments.py`",
    "miles": "radixark/miles 0a5e0db: `miles/utils/args/configs/algo.py`",
    "NeMo-RL": "NVIDIA-NeMo/RL 006907a: `nemo_rl/algorithms/loss/loss_functions.py`; guide on router replay of 0.8.0",
    "SkyRL": "NovaSky-AI/SkyRL 1331ec7: `skyrl/train/config/ppo_base_config.yaml`; its Megatron examples",
    "prime-rl": "PrimeIntellect-ai/prime-rl 004274e: its page on algorithms, and the configuration of the trainer",
    "ms-swift": "modelscope/ms-swift 0380944 and bed8ec6: pages on training-inference mismatch and on router replay",
    "AReaL": "inclusionAI/AReaL main: `areal/api/cli_args.py`",
}
"""By framework, where its rows without a check were read, in stored sources of August to November 2026."""
Checked = Meaning
KNOWN = {term.name: term for term in TERMS}


@dataclass(frozen=True, kw_only=True)
class Name:
    """One name.

    Args:
        here: the key of this package, and what it is.
        terms: names of `core.conformance.terms`, whose statements about peers stand here as well.
        checked: more statements that a row of a peer tries.
        read: by framework, what its sources say.
    """

    here: str
    terms: tuple[str, ...] = ()
    checked: Mapping[str, Checked] = field(default_factory=dict)
    read: Mapping[str, str] = field(default_factory=dict)


def _c(says: str, row: str) -> Checked:
    return Checked(says=says, row=row)


FORKED = ("slime", "miles")  # whose flags are the same


def _both(says: str) -> dict[str, str]:
    return dict.fromkeys(FORKED, says)


NAMES: Mapping[str, Name] = {
    "product": Name(
        here='`ratio.span = "sequence"`, `correction.span = "sequence"`: Π ρ, held at exp(20)',
        terms=("sequence-level ratio, product",),
        read={
            "NeMo-RL": "the weight π_old/μ under `sequence_level_importance_ratios`, not held. The same flag makes the "
            "PPO ratio θ/old a geometric mean",
            "AReaL": "`rejection_sampling.level = sequence` with `agg = sum`",
        },
    ),
    "geometric": Name(
        here='`ratio.span = "geometric"`: (Π ρ)^(1/|y|)',
        terms=("sequence-level ratio, geometric mean",),
        read={
            **_both("`--advantage-estimator gspo`"),
            "NeMo-RL": "the PPO ratio θ/old under `sequence_level_importance_ratios`; the weight π_old/μ beside it is "
            "the product",
            "SkyRL": "`policy_loss_type = gspo`",
            "ms-swift": "`rollout_importance_sampling_mode = sequence_truncate`, `sequence_mask`: there *sequence* is "
            "the geometric mean",
            "AReaL": "`importance_sampling_level = sequence`; `rejection_sampling.level = sequence` unless `agg = sum`",
        },
    ),
    "truncated": Name(
        here='`correction.kind = "truncate"`, `of = "old/mu"`, `high`, `low`: the weight is held within bounds (TIS)',
        checked={
            "trl": _c("`vllm_importance_sampling_mode = token_truncate`", "dapo, token_truncate"),
            "verl": _c("`rollout_is = token`, `rollout_is_threshold`", "vanilla, token weights"),
        },
        read={
            **_both("`--use-tis`, `--tis-clip` 2, `--tis-clip-low` 0"),
            "NeMo-RL": "`truncated_importance_sampling_type = tis`, `truncated_importance_sampling_ratio`, and "
            "`use_importance_sampling_correction`",
            "SkyRL": "`off_policy_correction.tis_ratio_type = token` or `sequence`, `token_tis_ratio_clip_high` 2, "
            "`sequence_tis_ratio_clip_high` 5",
            "ms-swift": "`rollout_importance_sampling_mode = token_truncate`, threshold 2",
            "AReaL": "`rejection_sampling.action = clamp`, `level = token`, `metric = ratio`",
        },
    ),
    "masked": Name(
        here='`correction.kind = "mask"`, `low`, `high`: a token whose old/mu leaves the bounds is dropped (IcePop)',
        checked={
            "trl": _c("`vllm_importance_sampling_mode = token_mask`", "grpo, token_mask"),
            "verl": _c("`rollout_is = token` with two bounds, `0.5_5.0`", "vanilla, masked weights"),
        },
        read={
            **_both("none built in; `--custom-tis-function-path`"),
            "NeMo-RL": "`truncated_importance_sampling_type = icepop`, with `truncated_importance_sampling_ratio_min`",
            "prime-rl": "the default loss masks by π - μ instead, `dppo_mask_low`, `dppo_mask_high` 0.2 (DPPO)",
            "ms-swift": "`rollout_importance_sampling_mode = token_mask`: an upper bound alone",
            "AReaL": "`rejection_sampling.action = mask`, `level = token`, `metric = ratio`",
        },
    ),
    "rejected": Name(
        here="`rejection.kind`, `over = sum` or `mean`: a response is dropped by product or by geometric mean (MIS)",
        terms=("bounds of a rejected response",),
        read={
            **_both(
                "none built in; `--custom-tis-function-path`, as in their `mis.py`. `--use-opsm` drops by A and KL"
            ),
            "NeMo-RL": "`truncated_importance_sampling_type = seq-mask-tis`: by the geometric mean; what stays keeps "
            "its token weights, not truncated",
            "SkyRL": "`off_policy_correction.sequence_mask_metric = product` or `geometric`; "
            "`outlier_token_is_threshold_low`, `high` drop a response by one token",
            "ms-swift": "`rollout_importance_sampling_mode = sequence_mask`: by the geometric mean",
            "AReaL": "`rejection_sampling.action = mask`, `level = sequence`, `metric` of ratio, k1, k2, k3, `agg`",
        },
    ),
    "clip": Name(
        here="`clip.low`, `clip.high`: distances from 1, of `ratio.of`",
        checked={
            "trl": _c("`epsilon`, `epsilon_high`", "dapo"),
            "verl": _c("`clip_ratio_low`, `clip_ratio_high`", "vanilla, clip higher"),
            "torchrl": _c("`clip_epsilon`, one number or two", "DAPO"),
        },
        read={
            **_both("`--eps-clip` 0.2, `--eps-clip-high`"),
            "NeMo-RL": "`ratio_clip_min`, `ratio_clip_max`: distances from 1, not bounds",
            "SkyRL": "`eps_clip_low`, `eps_clip_high`",
            "prime-rl": "none on the ratio; `dppo_mask_low`, `dppo_mask_high` bound π - μ",
            "AReaL": "`eps_clip`, `eps_clip_higher`",
        },
    ),
    "dual": Name(
        here='`clip.kind = "dual"`, `clip.cap`; none in `ppo`',
        terms=("upper bound where A < 0",),
        read={
            **_both("`--eps-clip-c`, none unless set"),
            "NeMo-RL": "`ratio_clip_c`, none unless set",
            "SkyRL": "`policy_loss_type = dual_clip`, `clip_ratio_c` 3",
            "AReaL": "`c_clip`, none unless set",
        },
    ),
    "token-mean": Name(
        here='`aggregation.kind = "token_mean"`, over all response tokens of the batch',
        terms=("token mean",),
        read={
            **_both("`--calculate-per-token-loss`"),
            "NeMo-RL": "`token_level_loss = true`, the default",
            "SkyRL": "`loss_reduction = token_mean`, the default",
            "prime-rl": "the default loss",
        },
    ),
    "sequence-mean": Name(
        here='`aggregation.kind = "length"`; a response without tokens counts',
        terms=("mean over responses of token means",),
        read={
            **_both("the default, a sum of means of samples"),
            "NeMo-RL": "`token_level_loss = false`",
            "SkyRL": "`loss_reduction = sequence_mean`; `seq_mean_token_sum_norm` divides by `max_seq_len`",
        },
    ),
    "spread": Name(
        here="`advantage.std`: A over the sample deviation of its group + 1e-6; `advantage.scale` of the batch",
        terms=("spread of a group",),
        read={
            **_both("divides unless `--disable-grpo-std-normalization`; `--normalize-advantages` whitens"),
            "SkyRL": "`grpo_norm_by_std`, true unless set; `advantage_batch_normalize` whitens",
            "prime-rl": "`grpo` subtracts the mean and does not divide; `max_rl` divides by the mean",
            "ms-swift": "`scale_rewards = group`, `batch`, `none` or `gdpo`",
            "AReaL": "`reward_norm`, `adv_norm`, each with `mean_level` and `std_level`, group or batch",
        },
    ),
    "kl": Name(
        here="`kl`: mean(-D), k1 of KL(μ‖π_old); `k3_kl`: mean(e^D - D - 1)",
        checked={"verl": _c("`rollout_corr/kl`, the same; `k3_kl`, the same", "kl")},
        read={
            **_both("`--get-mismatch-metrics` turns them on"),
            "NeMo-RL": "`gen_kl_error`, of KL(μ‖π_old), and `policy_kl_error`, the reverse; the estimator is "
            "`reference_policy_kl_type`, k3 unless set",
            "prime-rl": "`mismatch_kl`: ρ - log ρ - 1, with π_θ in the place of π_old",
            "ms-swift": "`rollout_correction/kl`, by its page mean(D), and `k3_kl`, mean(e^D - D - 1)",
        },
    ),
    "chi2": Name(
        here="`chi2_seq`: mean over responses of exp(2 Σ D), less 1, Σ D held within ±20; `chi2_token` of tokens",
        terms=("chi2_seq",),
        read={"ms-swift": "`chi2_seq` of the *geometric mean*: mean of exp(2 mean D), less 1. `chi2_token` of tokens"},
    ),
    "ppl": Name(
        here="`ppl_ratio`: mean over responses of exp(-mean D)",
        terms=("ppl_ratio",),
        read={"ms-swift": "`ppl_ratio`, of `training_ppl` over `rollout_ppl`"},
    ),
    "ess": Name(
        here="`rollout_is_eff_sample_size` of min(ρ, 2); `token_eff_sample_size` of ρ; `seq_eff_sample_size` of Π ρ",
        terms=("effective sample size of tokens",),
        read={"ms-swift": "1 / mean((w / mean w)^2), of the weights of its mode"},
    ),
    "probs": Name(
        here="`rollout_probs_diff_mean`, `std` of |π_old - μ|; `token_mult_prob_error`: mean of e^|D|",
        checked={"verl": _c("`training/rollout_probs_diff_mean`, the same", "rollout_probs_diff_mean")},
        read={"NeMo-RL": "`token_mult_prob_error`, the same", "prime-rl": "`prob_delta` of its token exports: π_θ - μ"},
    ),
    "reference": Name(
        here="`terms.reference_kl`, `terms.reference_estimator`, k3 unless set; log-ratios are held within ±20",
        terms=("KL to a reference in the loss",),
        read={
            **_both("`--use-kl-loss`, `--kl-loss-coef`, `--kl-loss-type` k1 unless set; `--use-unbiased-kl`"),
            "NeMo-RL": "`reference_policy_kl_penalty` 0.01, `reference_policy_kl_type` k3; log-ratios are held within "
            "20, values within 10",
            "SkyRL": "`use_kl_loss`, `kl_loss_coef`, `kl_estimator_type` k3 unless set",
            "prime-rl": "none; `kl_tau` is the coefficient of the squared log π_θ/μ, and no KL to a reference",
            "AReaL": "`kl_ctl`, `kl_estimator` k1 unless set",
        },
    ),
    "replay": Name(
        here='`router_replay.mode = "disabled"`, `"R2"` or `"R3"`',
        read={
            "verl": "`router_replay.mode` = `disabled`, `R2`, `R3` of the actor's engine section; R3 also wants "
            "`rollout.enable_rollout_routing_replay`",
            **_both("R2: `--use-routing-replay`; R3: `--use-rollout-routing-replay`"),
            "NeMo-RL": "R3: `policy.router_replay.enabled`; no R2",
            "SkyRL": "R3: `megatron_config.moe_enable_routing_replay` and its engines' `enable_return_routed_experts`",
            "prime-rl": "R3: `enable_router_replay`",
            "ms-swift": "`router_replay_mode` = `disabled`, `R2`, `R3`; Megatron alone",
        },
    ),
    "logs": Name(
        here="`logp_mu`, of the rollout engine; `logp_old`, of the trainer at the weights of the rollout",
        read={
            "verl": "`rollout_log_probs`; `old_log_probs`",
            **_both("`rollout_log_probs`; `log_probs`"),
            "NeMo-RL": "`generation_logprobs`; `prev_logprobs`",
            "SkyRL": "`rollout_logprobs`; `action_log_probs`",
            "prime-rl": "`inference_logprobs`; `trainer_logprobs`, of π_θ",
        },
    ),
}


def named(name: str) -> str:
    """A row a framework: what it calls it, and how that is known."""
    told = NAMES[name]
    tried = {peer: meaning.says for term in told.terms for peer, meaning in KNOWN[term].elsewhere.items()}
    tried |= {peer: meaning.says for peer, meaning in told.checked.items()}
    releases = dict(zip(FRAMEWORKS, agreement.heads(), strict=True))
    cells = [("**firstorder**", told.here, "its key")]
    cells += [(releases[peer], tried[peer], "checked") for peer in FRAMEWORKS if peer in tried]
    cells += [(framework, says, "read") for framework, says in told.read.items()]
    return tables.rows(("framework", "what it is there", ""), cells)


def sources() -> str:
    """Where each framework was read, or how it was tried."""
    peers = agreement.record()
    tried = [(head, f"called by `firstorder conformance peers`, {peers['date']}") for head in agreement.heads()]
    return tables.rows(("framework", "how it is known"), [*tried, *READ.items()])
