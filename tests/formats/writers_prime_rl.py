"""Samples as prime-rl writes them: JSON of its own, made column by column."""

import json
import math


def write(root, samples, ranks=1):
    """`root/token_exports/step_N/rank_R.jsonl`; the responses of a step are dealt to the ranks in turn."""
    for step in sorted({sample.step for sample in samples}):
        folder = root / "token_exports" / f"step_{step}"
        folder.mkdir(parents=True, exist_ok=True)
        chosen = [sample for sample in samples if sample.step == step]
        for rank in range(ranks):
            text = "".join(line(sample, rank, index) for index, sample in enumerate(chosen[rank::ranks]))
            (folder / f"rank_{rank}.jsonl").write_text(text)
        (folder / "STABLE").touch()
    return sorted(root.rglob("*.jsonl"))


def in_order(samples, ranks):
    """The samples as they come back from so many ranks."""
    steps = sorted({sample.step for sample in samples})
    by_step = [[s for s in samples if s.step == step] for step in steps]
    return [sample for chosen in by_step for rank in range(ranks) for sample in chosen[rank::ranks]]


def line(sample, rank=0, index=0, **changed):
    return json.dumps(record(sample, rank, index) | changed, separators=(",", ":"), allow_nan=False) + "\n"


def record(sample, rank=0, index=0):
    mu, old = sample.logp_mu.tolist(), sample.logp_old.tolist()
    d = [y - x for x, y in zip(mu, old, strict=True)]
    return {
        "schema_version": 1,
        "step": sample.step,
        "export_step": sample.step,
        "rank": rank,
        "micro_step": 0,
        "micro_sequence_idx": index,
        "export_sequence_idx": index,
        "run_id": None,
        "env_name": "sums",
        "token_ids": sample.tokens.tolist(),
        "position_ids": list(range(len(mu))),
        "loss_mask": sample.mask.tolist(),
        "advantages": sample.advantage.tolist(),
        "losses": [{"rl": {"advantage": a, "mask": m}} for a, m in pairs(sample.advantage, sample.mask)],
        "rewards": [sample.reward] * len(mu),
        "inference_logprobs": nulls(mu),
        "trainer_logprobs": nulls(old),
        "entropy": nulls(sample.entropy.tolist()),
        "mismatch_kl": nulls([math.exp(x) - x - 1 for x in d]),
        "log_importance_ratio": nulls(d),
        "importance_ratio": nulls([math.exp(x) for x in d]),
        "prob_delta": nulls([math.exp(y) - math.exp(x) for x, y in zip(mu, old, strict=True)]),
        "is_masked": [False] * len(mu),
        "is_masked_high": [False] * len(mu),
        "is_masked_low": [None] * len(mu),
    }


def pairs(a, b):
    return zip(a.tolist(), b.tolist(), strict=True)


def nulls(values):
    return [x if math.isfinite(x) else None for x in values]
