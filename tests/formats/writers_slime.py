"""Samples as slime writes them: a rollout and a train file of each step."""

import numpy as np
import torch


def rollout(sample, index, array=torch.as_tensor):
    """What `Sample.to_dict` gives."""
    response = response_of(sample)
    return {
        "group_index": sample.group,
        "index": index,
        "prompt": "a question",
        "tokens": sample.tokens.tolist(),
        "multimodal_inputs": None,
        "response": "an answer",
        "response_length": response,
        "label": "4",
        "reward": sample.reward,
        "loss_mask": sample.mask[-response:].int().tolist(),
        "weight_versions": [str(int(sample.version[0]))],
        "rollout_log_probs": sample.logp_mu[-response:].tolist(),
        "rollout_routed_experts": None if sample.routes is None else array(sample.routes[:-1].int()),
        "remove_sample": False,
        "status": "completed",
        "metadata": {"turns": [1, 2], "nested": {"a": (1, None)}},
        "non_generation_time": 0.25,
        "spec_info": {"spec_accept_token_num": 0},
    }


def trained(sample, index, position):
    response = response_of(sample)
    last = slice(len(sample.tokens) - response, None)
    return {
        "data_parallel_rank": index % 2,
        "sample_index": index,
        "rollout_position": position,
        "tokens": sample.tokens,
        "response_lengths": response,
        "total_lengths": len(sample.tokens),
        "rewards": sample.reward - 0.5,
        "truncated": 0,
        "loss_masks": sample.mask[last].int(),
        "rollout_log_probs": sample.logp_mu[last].float(),
        "log_probs": sample.logp_old[last].float(),
        "ref_log_probs": sample.logp_old[last].float(),
        "advantages": sample.advantage[last].float(),
        "returns": sample.advantage[last].float(),
        "entropy": sample.entropy[last].float(),
    }


def response_of(sample):
    """The made samples answer from the first sampled token on."""
    return len(sample.tokens) - int(sample.mask.nonzero()[0])


def write(folder, samples, array=torch.as_tensor, parts=("rollout", "train")):
    """The files of every step, as paths."""
    paths = []
    for step in sorted({sample.step for sample in samples}):
        mine = [sample for sample in samples if sample.step == step]
        first = 1000 * step
        files = {
            "rollout": {"rollout_id": step, "samples": [rollout(s, first + i, array) for i, s in enumerate(mine)]},
            "train": {
                "format_version": 2,
                "rollout_id": step,
                "rank": 3,
                "samples": [trained(s, first + i, i) for i, s in enumerate(mine)],
                "dp_shards": [{"rank": 3, "partition": list(range(len(mine))), "micro_batch_indices": [[0, 1]]}],
                "raw_reward": [s.reward for s in mine],
            },
        }
        for part in parts:
            path = folder / f"{part}_data" / f"{step}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(files[part], path)
            paths.append(path)
    return paths


def as_numpy(rows):
    """Routes as an array of numpy, as miles and older slime hold them."""
    return np.asarray(rows)
