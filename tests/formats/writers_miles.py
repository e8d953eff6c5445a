"""Samples as miles writes them: slime's rollout file and a train file for every rank that holds numbers."""

import torch
import writers_slime as slime

NUMBERS = ("rollout_log_probs", "log_probs", "ref_log_probs", "advantages", "returns", "entropy")


def held(total, response, rank, size, padded=None):
    """The entries of a response that a rank holds, by where each is made, in the order of the rank's positions."""
    chunk = -(-(padded or total) // (2 * size))
    made_at = torch.arange(total - response - 1, total - 1)  # of entry r, the position that yields it
    of_chunk = made_at.clamp(min=-1).div(chunk, rounding_mode="floor")
    there = (of_chunk == rank) | (of_chunk == 2 * size - 1 - rank)
    return there.nonzero()[:, 0]


def shard(samples, indices, rank, cp_rank=0, cp_size=1, qkv_format="thd", drop=(), said=True):
    """One rank's file."""
    rows = [slime.trained(s, i, i) for s, i in zip(samples, indices, strict=True)]
    longest = -(-max(row["total_lengths"] for row in rows) // 8) * 8
    data = {
        "tokens": [row["tokens"] for row in rows],
        "response_lengths": [row["response_lengths"] for row in rows],
        "total_lengths": [row["total_lengths"] for row in rows],
        "rewards": [row["rewards"] for row in rows],
        "loss_masks": [row["loss_masks"] for row in rows],
        "sample_indices": list(indices),
        "micro_batch_indices": [[0]],
    }
    padded = longest if qkv_format == "bshd" else None
    if padded:
        data["max_seq_lens"] = [padded] * len(rows)
    for name in NUMBERS:
        data[name] = [
            row[name][held(row["total_lengths"], row["response_lengths"], cp_rank, cp_size, padded)] for row in rows
        ]
    data = {name: value for name, value in data.items() if name not in drop}
    extra = {"cp_rank": cp_rank, "cp_size": cp_size, "qkv_format": qkv_format} if said else {}
    return {"rank": rank, "rollout_data": data, **extra}


def write(folder, samples, cp_size=1, dp_size=2, qkv_format="thd", parts=("rollout", "train")):
    paths = slime.write(folder, samples, parts=("rollout",), array=slime.as_numpy) if "rollout" in parts else []
    for step in sorted({sample.step for sample in samples}) if "train" in parts else ():
        mine = [sample for sample in samples if sample.step == step]
        for dp in range(dp_size):
            share = list(range(dp, len(mine), dp_size))
            indices = [1000 * step + i for i in share]
            for cp in range(cp_size):
                rank = 10 + dp * cp_size + cp
                saved = shard([mine[i] for i in share], indices, rank, cp, cp_size, qkv_format)
                path = folder / "train_data" / f"{step}_{rank}.pt"
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save({"rollout_id": step, **saved}, path)
                paths.append(path)
    return paths


def losses(folder, samples, call=0, rank=0, cut=None):
    """A microbatch of the policy loss; `cut` keeps so many entries of a response, as a slice does."""
    rows = [slime.trained(s, i, i) for i, s in enumerate(samples)]
    saved = [
        {
            "index": i,
            "total_length": row["total_lengths"],
            "response_length": row["response_lengths"],
            "train_log_probs": row["log_probs"][:cut] - 0.5,
            "old_log_probs": row["log_probs"][:cut],
            "advantages": row["advantages"][:cut],
            "local_loss_mask": row["loss_masks"][:cut].float(),
            "rollout_log_probs": row["rollout_log_probs"][:cut],
        }
        for i, row in enumerate(rows)
    ]
    path = folder / "policy_loss_debug" / f"rank_{rank}_call_{call}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    finite = {"ppo_kl": True, "pg_loss": True}
    torch.save(
        {
            "rank": rank,
            "call": call,
            "samples": saved,
            "ppo_kl": torch.zeros(3),
            "pg_loss": torch.zeros(3),
            "finite": finite,
        },
        path,
    )
    return path
