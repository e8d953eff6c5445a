"""verl: its registered policy losses, rollout correction, metrics and advantages."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .inputs import Batch, gradient

Answer = Callable[[Batch], Any]
FREE = 1e9  # a bound that nothing meets


def answers() -> dict[str, Answer]:
    """By row, what this peer makes of a batch."""
    return {name: _graded(loss) for name, loss in (_losses() | _penalties()).items()} | _bonuses() | _metrics()


def _graded(loss: Callable[[Batch], Tensor]) -> Answer:
    return lambda batch: gradient(loss, batch)


def _algos() -> Any:
    return import_module("verl.trainer.ppo.core_algos")


def _helper() -> Any:
    return import_module("verl.trainer.ppo.rollout_corr_helper")


def _config(low: float, high: float, batch: Batch | None, **keys: Any) -> Any:
    """An actor's settings; with a batch, its size is what agg_loss divides by."""
    config = import_module("verl.workers.config.actor")
    whole = {} if batch is None else {"global_batch_size": batch.size}
    return config.ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=high,
        clip_ratio_low=low,
        clip_ratio_high=high,
        global_batch_info=whole | keys.pop("info", {}),
        **keys,
    )


def _loss(
    name: str,
    how: str,
    low: float = FREE,
    high: float = FREE,
    *,
    to: str = "old",
    whole: bool = True,
    weights: Callable[[Batch], Tensor] | None = None,
    rejects: tuple[str, str, str] | None = None,
    **keys: Any,
) -> Callable[[Batch], Tensor]:
    """A registered policy loss, aggregated `how`, on the ratio of π_θ `to` another policy."""

    def loss(batch: Batch) -> Tensor:
        found, _ = _algos().get_policy_loss_fn(name)(
            old_log_prob=getattr(batch, to),
            log_prob=batch.theta,
            advantages=batch.advantages,
            response_mask=batch.mask.double() if rejects is None else _rejected(batch, *rejects),
            loss_agg_mode=how,
            config=_config(low, high, batch if whole else None, **keys),
            rollout_is_weights=None if weights is None else weights(batch),
        )
        return found  # type: ignore[no-any-return]

    return loss


def _weights(
    level: str, threshold: float | str, above: str = "old", *, normalised: bool = False
) -> Callable[[Batch], Tensor]:
    """Weights of rollout correction, above / mu."""

    def made(batch: Batch) -> Tensor:
        found, _ = _helper().compute_rollout_correction_weights(
            log_ratio=_between(batch, above),
            response_mask=batch.mask.double(),
            rollout_is=level,
            rollout_is_threshold=threshold,
            rollout_is_batch_normalize=normalised,
        )
        return found  # type: ignore[no-any-return]

    return made


def _between(batch: Batch, above: str) -> Tensor:
    numerator: Tensor = getattr(batch, above)
    return (numerator - batch.mu).detach()


def _rejected(batch: Batch, option: str, bounds: str, above: str) -> Tensor:
    """The mask that is left of a batch when an option of rejection has bounds of μ over another policy."""
    found, _ = _helper().compute_rollout_rejection_mask(
        log_ratio=_between(batch, above),
        response_mask=batch.mask.double(),
        rollout_rs=option,
        rollout_rs_threshold=bounds,
    )
    return found  # type: ignore[no-any-return]


def _reinforce(
    weights: Callable[[Batch], Tensor] | None = None, rejects: tuple[str, str, str] | None = None, whole: bool = True
) -> Callable[[Batch], Tensor]:
    """compute_policy_loss_reinforce, with weights and with (option, bounds, policy) of rejection."""

    def loss(batch: Batch) -> Tensor:
        found, _ = _algos().compute_policy_loss_reinforce(
            rollout_log_prob=batch.mu,
            log_prob=batch.theta,
            advantages=batch.advantages,
            response_mask=batch.mask.double() if rejects is None else _rejected(batch, *rejects),
            loss_agg_mode=SUM,
            config=_config(0.2, 0.2, batch if whole else None),
            rollout_is_weights=None if weights is None else weights(batch),
        )
        return found  # type: ignore[no-any-return]

    return loss


REJECTED = {
    "token_k1": "0.47_2.3",
    "token_k2": "0.1",
    "token_k3": "0.1",
    "seq_sum_k1": "0.37_1.17",
    "seq_sum_k2": "0.3",
    "seq_sum_k3": "0.3",
    "seq_mean_k1": "0.8_1.06",
    "seq_mean_k2": "0.04",
    "seq_mean_k3": "0.04",
    "seq_max_k2": "0.2",
    "seq_max_k3": "0.2",
}
"""The bounds of `core.conformance.methods.REJECTED` as an option has them: of k1 those of the ratio μ over π_old."""
SUM, MEAN, TOKENS, BUDGET = "seq-mean-token-sum", "seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"


def _losses() -> dict[str, Callable[[Batch], Tensor]]:
    return {
        "vanilla": _loss("vanilla", TOKENS, 0.2, 0.2, clip_ratio_c=FREE),
        "vanilla, defaults": _loss("vanilla", TOKENS, 0.2, 0.2),
        "vanilla, clip higher": _loss("vanilla", TOKENS, 0.2, 0.28, clip_ratio_c=FREE),
        "vanilla, mean of means": _loss("vanilla", MEAN, 0.2, 0.2, clip_ratio_c=FREE),
        "vanilla, mean of means, size not given": _loss("vanilla", MEAN, 0.2, 0.2, whole=False, clip_ratio_c=FREE),
        "vanilla, constant length": _loss(
            "vanilla", BUDGET, 0.2, 0.2, clip_ratio_c=FREE, info={"loss_scale_factor": 1024}
        ),
        "vanilla, dual clip": _loss("vanilla", TOKENS, 0.2, 0.2, clip_ratio_c=3.0),
        "sapo": _loss("sapo", MEAN, tau_pos=1.0, tau_neg=1.05),
        "gspo": _loss("gspo", MEAN, 0.0003, 0.0004),
        "geo_mean": _loss("geo_mean", MEAN, 0.4, 0.4),
        "cispo": _loss("cispo", TOKENS, 1.0, 4.0),
        "cispo, tight": _loss("cispo", SUM, 0.2, 0.28),
        "dppo_tv": _loss("dppo_tv", SUM, 0.15, 0.15, to="mu", clip_ratio_c=FREE),
        "dppo_tv, defaults": _loss("dppo_tv", SUM, 0.15, 0.15, to="mu"),
        "dppo_kl": _loss("dppo_kl", SUM, 0.05, 0.05, to="mu", clip_ratio_c=FREE),
        "vanilla, token weights": _loss(
            "vanilla", TOKENS, 0.2, 0.28, clip_ratio_c=FREE, weights=_weights("token", 2.0)
        ),
        "vanilla, normalised weights": _loss(
            "vanilla", TOKENS, 0.2, 0.28, clip_ratio_c=FREE, weights=_weights("token", 2.0, normalised=True)
        ),
        "vanilla, normalised sequence weights": _loss(
            "vanilla", SUM, clip_ratio_c=FREE, weights=_weights("sequence", 2.0, normalised=True)
        ),
        "vanilla, untruncated weights": _loss(
            "vanilla", TOKENS, 0.2, 0.2, clip_ratio_c=FREE, weights=_weights("token", FREE)
        ),
        "vanilla, masked weights": _loss(
            "vanilla", MEAN, 0.2, 0.2, clip_ratio_c=FREE, weights=_weights("token", "0.5_5.0")
        ),
        "vanilla, sequence weights": _loss("vanilla", SUM, clip_ratio_c=FREE, weights=_weights("sequence", 2.0)),
        "vanilla, masked sequence weights": _loss(
            "vanilla", SUM, clip_ratio_c=FREE, weights=_weights("sequence", "0.6_3.0")
        ),
        "vanilla, rejected responses": _loss(
            "vanilla", TOKENS, clip_ratio_c=FREE, rejects=("seq_sum_k1", f"{1 / 3.0}_{1 / 0.6}", "old")
        ),
        "vanilla, token weights, token_k3": _loss(
            "vanilla",
            SUM,
            0.2,
            0.2,
            clip_ratio_c=FREE,
            weights=_weights("token", 1.3),
            rejects=("token_k3", "0.3", "old"),
        ),
        **{
            f"rejected by {option}": _reinforce(_weights("token", FREE, "theta"), (option, bounds, "old"))
            for option, bounds in REJECTED.items()
        },
        "reinforce": _reinforce(),
        "reinforce, size not given": _reinforce(whole=False),
        "reinforce, token weights": _reinforce(_weights("token", FREE, "theta")),
        "reinforce, sequence weights": _reinforce(_weights("sequence", FREE, "theta")),
        "reinforce, seq_sum_k1": _reinforce(_weights("sequence", FREE, "theta"), ("seq_sum_k1", "0.5_1e9", "theta")),
        "reinforce, seq_sum_k1, our bounds": _reinforce(
            _weights("sequence", FREE, "theta"), ("seq_sum_k1", "1e-9_2.0", "theta")
        ),
        "reinforce, seq_mean_k1": _reinforce(
            _weights("token", FREE, "theta"), ("seq_mean_k1", f"{1 / 1.001}_{1 / 0.999}", "old")
        ),
        "reinforce, wide seq_mean_k1": _reinforce(
            _weights("token", FREE, "theta"), ("seq_mean_k1", f"{1 / 1.12}_{1 / 0.96}", "old")
        ),
    }


KL_TYPES = ("kl", "abs", "mse", "low_var_kl", "k1+", "k3+")


def _penalties() -> dict[str, Callable[[Batch], Tensor]]:
    """`kl_penalty` of every `kl_loss_type`, aggregated as `ppo_loss` does."""
    divided = {"mean of means": MEAN, "token mean": TOKENS}
    return {f"kl_loss, {kind}": _penalty(kind, SUM) for kind in KL_TYPES} | {
        f"kl_loss, low_var_kl, {name}": _penalty("low_var_kl", how) for name, how in divided.items()
    }


def _penalty(kind: str, how: str) -> Callable[[Batch], Tensor]:
    return lambda batch: _aggregated(_algos().kl_penalty(batch.theta, batch.ref, kind), batch, how)


def _bonuses() -> dict[str, Answer]:
    """The gradient by the entropy of what `ppo_loss` subtracts."""
    divided = {"sum": SUM, "mean of means": MEAN, "token mean": TOKENS}
    return {f"entropy_coeff, {name}": _bonus(how) for name, how in divided.items()}


def _bonus(how: str) -> Answer:
    return lambda batch: gradient(lambda given: -_aggregated(given.entropy, given, how), batch, by="entropy")


def _aggregated(values: Tensor, batch: Batch, how: str) -> Tensor:
    found: Tensor = _algos().agg_loss(values, batch.mask.double(), how, global_batch_size=batch.size)
    return found


def _metrics() -> dict[str, Answer]:
    off = ("kl", "k3_kl", "training_ppl", "rollout_ppl", "ppl_ratio", "chi2_token", "chi2_seq")
    debug = ("rollout_probs_diff_mean", "rollout_probs_diff_std", "rollout_actor_probs_pearson_corr")
    return {
        **{name: _of(_offpolicy, name) for name in off},
        **{name: _of(_debug, f"training/{name}") for name in debug},
        "rollout_is_eff_sample_size": _of(_is, "rollout_is_eff_sample_size"),
        "rollout_is_ratio_fraction_high": _of(_is, "rollout_is_ratio_fraction_high"),
        "rollout_is_ratio_fraction_high, sequence": _of(_of_sequence, "rollout_is_ratio_fraction_high"),
        "pg_clipfrac": _of(_vanilla, "actor/pg_clipfrac"),
    }


def _of(made: Callable[[Batch], dict[str, float]], name: str) -> Answer:
    return lambda batch: made(batch)[name]


def _offpolicy(batch: Batch) -> dict[str, float]:
    found: dict[str, float] = _helper().compute_offpolicy_metrics(batch.old, batch.mu, batch.mask.double())
    return found


def _is(batch: Batch, level: str = "token") -> dict[str, float]:
    _, found = _helper().compute_rollout_correction_weights(
        log_ratio=_between(batch, "old"),
        response_mask=batch.mask.double(),
        rollout_is=level,
        rollout_is_threshold=2.0,
    )
    return found  # type: ignore[no-any-return]


def _of_sequence(batch: Batch) -> dict[str, float]:
    return _is(batch, "sequence")


def _debug(batch: Batch) -> dict[str, float]:
    debug = import_module("verl.utils.debug.metrics")
    fields = {"rollout_log_probs": batch.mu, "old_log_probs": batch.old, "response_mask": batch.mask.double()}
    data = type("Data", (), {"batch": fields | {"responses": torch.zeros(batch.mask.shape)}})()
    found: dict[str, float] = debug.calculate_debug_metrics(data)
    return found


def _vanilla(batch: Batch) -> dict[str, float]:
    _, found = _algos().compute_policy_loss_vanilla(
        old_log_prob=batch.old,
        log_prob=batch.theta,
        advantages=batch.advantages,
        response_mask=batch.mask.double(),
        config=_config(0.2, 0.2, None, clip_ratio_c=FREE),
    )
    return found  # type: ignore[no-any-return]


def of_rewards() -> dict[str, Callable[[list[list[float]]], Any]]:
    """By row, the advantages `[groups, G]` of groups of rewards."""
    return {
        "grpo advantage": _outcome("compute_grpo_outcome_advantage", norm_adv_by_std_in_grpo=True),
        "grpo advantage, no std": _outcome("compute_grpo_outcome_advantage", norm_adv_by_std_in_grpo=False),
        "rloo advantage": _outcome("compute_rloo_outcome_advantage"),
        "reinforce_plus_plus advantage": _whitened,
        "reinforce_plus_plus_baseline advantage": _outcome("compute_reinforce_plus_plus_baseline_outcome_advantage"),
    }


def _outcome(name: str, **keys: Any) -> Callable[[list[list[float]]], Any]:
    def made(groups: list[list[float]]) -> Any:
        numpy = import_module("numpy")
        rewards = torch.tensor(groups, dtype=torch.float64)
        index = numpy.repeat(numpy.arange(len(groups)), rewards.shape[-1])
        flat = rewards.reshape(-1, 1).clone()
        found, _ = getattr(_algos(), name)(flat, torch.ones_like(flat), index, **keys)
        return found.reshape(rewards.shape).tolist()

    return made


def _whitened(groups: list[list[float]]) -> Any:
    rewards = torch.tensor(groups, dtype=torch.float64)
    flat = rewards.reshape(-1, 1)
    found, _ = _algos().compute_reinforce_plus_plus_outcome_advantage(
        flat, torch.ones_like(flat), SimpleNamespace(gamma=1.0)
    )
    return found.reshape(rewards.shape).tolist()


def of_values() -> dict[str, Callable[[dict[str, Any], float], Any]]:
    """By row, the advantages `[B, T]` of a critic's values at a λ."""
    return {
        "gae": lambda valued, lam: _gae(valued, lam, whitened=False),
        "whitened gae": lambda valued, lam: _gae(valued, lam, whitened=True),
    }


def _gae(valued: dict[str, Any], lam: float, *, whitened: bool) -> Any:
    values, mask, rewards = (torch.tensor(valued[name], dtype=torch.float64) for name in ("values", "mask", "rewards"))
    last = (mask.cumsum(-1) == mask.sum(-1, keepdim=True)) & (mask > 0)
    advantages, returns = _algos().compute_gae_advantage_return(rewards[:, None] * last, values, mask, 1.0, lam)
    found = advantages if whitened else returns - values
    return torch.where(mask > 0, found, 0.0).tolist()
