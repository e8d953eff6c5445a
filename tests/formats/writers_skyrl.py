"""Samples as SkyRL dumps a training batch: a pickle of a TrainingInputBatch a step."""

import copyreg
import io
import pickle

import torch
from fakes import named


def serialized(tensor):
    """What SkyRL makes of a tensor; numpy has no bfloat16."""
    if tensor.dtype is torch.bfloat16:
        buffer = io.BytesIO()
        torch.save(tensor, buffer)
        return {"format": "torch", "data": buffer.getvalue()}
    array = tensor.contiguous().numpy()
    return {"format": "numpy", "data": array.tobytes(), "shape": array.shape, "dtype": str(array.dtype)}


def fields(samples, routed=torch.int32, old=False):
    """The tensors of a batch: left-padded sequences, right-aligned numbers; `old` pads responses on the right."""
    responses = [len(s.tokens) - int(s.mask.nonzero()[0]) for s in samples]
    prompts = [len(s.tokens) - r for s, r in zip(samples, responses, strict=True)]
    width = max(responses)
    total = max(prompts) + width if old else max(len(s.tokens) for s in samples)
    layers, k = samples[0].routes.shape[1:]
    starts = [max(prompts) - p if old else total - len(s.tokens) for s, p in zip(samples, prompts, strict=True)]

    def blank(columns, dtype=torch.float32):
        return torch.zeros(len(samples), columns, dtype=dtype)

    out = {
        "sequences": blank(total, torch.int64) + 7,
        "attention_mask": blank(total, torch.int64),
        "response_mask": blank(width, torch.int64),
        "loss_mask": blank(width),
        "rollout_logprobs": blank(width),
        "action_log_probs": blank(width),
        "base_action_log_probs": blank(width),
        "advantages": blank(width),
        "rollout_expert_indices": torch.arange(k, dtype=routed).expand(len(samples), total, layers, k).clone(),
        "router_padding_mask": torch.ones(len(samples), total, dtype=torch.bool),
    }
    for row, (sample, start, response) in enumerate(zip(samples, starts, responses, strict=True)):
        here = slice(start, start + len(sample.tokens))
        window = slice(
            start + len(sample.tokens) - response - total + width, start + len(sample.tokens) - total + width
        )
        out["sequences"][row, here] = sample.tokens
        out["attention_mask"][row, here] = 1
        out["response_mask"][row, window] = 1
        for name, theirs in COLUMNS.items():
            out[theirs][row, window] = getattr(sample, name)[-response:].float()
        out["base_action_log_probs"][row, window] = sample.logp_old[-response:].float()
        routed_rows = (sample.routes >= 0).flatten(1).all(-1)
        out["rollout_expert_indices"][row, here][routed_rows] = sample.routes[routed_rows].to(routed)
        out["router_padding_mask"][row, here] = ~routed_rows
    return out


COLUMNS = {
    "mask": "loss_mask",
    "logp_mu": "rollout_logprobs",
    "logp_old": "action_log_probs",
    "advantage": "advantages",
}


def saved(value):
    """What skyrl-train made of a tensor, or of None, until its version 0.3."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def save(path, batch, metadata, rebuilt=True, form=serialized, module="skyrl__backends__skyrl_train__training_batch"):
    """The pickle; before the batch had a way of its own to be rebuilt, its state was set on it."""
    state = {
        "batch_dict": {
            name: t if isinstance(t, dict) or (t is None and form is serialized) else form(t)
            for name, t in batch.items()
        },
        "batch_size": len(batch["attention_mask"]),
        "device": torch.device("cpu"),
        "metadata": metadata,
    }

    def _rebuild_tensor_batch(cls, state):
        raise AssertionError("a reader must not call it")

    class TrainingInputBatch(dict):
        def __reduce_ex__(self, protocol):
            if rebuilt:
                return _rebuild_tensor_batch, (TrainingInputBatch, state)
            return copyreg.__newobj__, (TrainingInputBatch,), state

    with named(**{module: (_rebuild_tensor_batch, TrainingInputBatch)}):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(TrainingInputBatch()))
    return path


def write(folder, samples, routed=torch.int32, old=False, **how):
    paths = []
    for step in sorted({sample.step for sample in samples}):
        mine = [sample for sample in samples if sample.step == step]
        path = folder / "dumped_data" / f"global_step_{step}_training_input.pkl"
        paths.append(
            save(path, fields(mine, routed, old), {"uids": [f"u{s.group}" for s in mine], "pad_size": 0}, **how)
        )
    return paths
