"""Samples as verl dumps them: `gen_batch.dp`, a pickle of a DataProto in either serialisation, and `tq_batch.pt`.

The records of a TensorDict are those that tensordict 0.15 writes, made without it.
"""

import io
import json
import pickle

import numpy as np
import torch
from fakes import named

NUMBERS = {
    "logp_mu": "rollout_log_probs",
    "logp_old": "old_log_probs",
    "entropy": "entropys",
    "advantage": "advantages",
}


def responses_of(samples):
    return [len(s.tokens) - int(s.mask.nonzero()[0]) for s in samples]


def padded(samples, more=3):
    """The tensors of a DataProto; columns are wider than the longest prompt and response."""
    responses = responses_of(samples)
    left = max(len(s.tokens) - r for s, r in zip(samples, responses, strict=True)) + more
    right = max(responses) + more
    count, (layers, k) = len(samples), samples[0].routes.shape[1:]
    out = {
        "prompts": torch.zeros(count, left, dtype=torch.int64),
        "responses": torch.zeros(count, right, dtype=torch.int64),
        "response_mask": torch.zeros(count, right, dtype=torch.int64),
        "attention_mask": torch.zeros(count, left + right, dtype=torch.int64),
        "position_ids": torch.zeros(count, left + right, dtype=torch.int64),
        "rm_scores": torch.zeros(count, right),
        "routed_experts": torch.zeros(count, left + right, layers, k, dtype=torch.int16),
        **{name: torch.zeros(count, right) for name in NUMBERS.values()},
    }
    for row, (sample, response) in enumerate(zip(samples, responses, strict=True)):
        prompt = len(sample.tokens) - response
        out["prompts"][row, left - prompt :] = sample.tokens[:prompt]
        out["responses"][row, :response] = sample.tokens[prompt:]
        out["response_mask"][row, :response] = sample.mask[prompt:].long()
        out["attention_mask"][row, left - prompt : left + response] = 1
        out["rm_scores"][row, response - 1] = sample.reward
        out["routed_experts"][row, left - prompt : left + response - 1] = sample.routes[:-1]
        for mine, theirs in NUMBERS.items():
            out[theirs][row, :response] = getattr(sample, mine)[prompt:].float()
    out["input_ids"] = torch.cat([out["prompts"], out["responses"]], 1)
    return out


def consolidated(fields):
    """The bytes of torch.save of a consolidated TensorDict: metadata, and one storage that holds every field."""
    leaves, parts, place = {}, [], 0
    for name, tensor in fields.items():
        data = tensor.contiguous().flatten().view(torch.uint8)
        pad = -len(data) % 8
        parts += [data, torch.zeros(pad, dtype=torch.uint8)]
        leaves[name] = (str(tensor.dtype), list(tensor.shape), place, place + len(data) + pad, pad)
        place += len(data) + pad
    metadata = {"cls": "TensorDict", "non_tensors": {}, "leaves": leaves, "cls_metadata": {"batch_size": [2]}}

    def _rebuild_tensordict_files_consolidated(metadata, storage):
        raise AssertionError("a reader must not call it")

    class TensorDict:
        def __reduce__(self):
            return _rebuild_tensordict_files_consolidated, (metadata, torch.cat(parts))

    buffer = io.BytesIO()
    with named(tensordict___reductions=[_rebuild_tensordict_files_consolidated]):
        torch.save(TensorDict(), buffer)
    return buffer.getvalue()


def as_arrays(fields):
    """The numpy serialisation of a DataProto's tensors."""
    encoded = {
        name: (str(t.dtype).removeprefix("torch."), t.shape, t.flatten().contiguous().view(torch.uint8).numpy())
        for name, t in fields.items()
    }
    return (len(fields["prompts"]),), None, encoded


def objects(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def proto(path, written, others, meta):
    class DataProto:
        def __getstate__(self):
            return written, others, meta

    with named(verl__protocol=[DataProto]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(DataProto()))
    return path


def others_of(samples):
    return {
        "uid": objects([f"uid-{s.group}" for s in samples]),
        "__num_turns__": np.array([2] * len(samples), dtype=np.int32),
        "min_global_steps": objects([int(s.version[0]) for s in samples]),
        "max_global_steps": objects([int(s.version[0]) for s in samples]),
        "data_source": np.array(["gsm8k"] * len(samples)),
        "accuracy": np.array([0.5] * len(samples)),
        "extra": objects([{"why": "because"} for _ in samples]),
    }


def write(folder, samples, how=consolidated):
    """The folder of each step, with a meta.json beside the batch."""
    paths = []
    for step in sorted({sample.step for sample in samples}):
        mine = [sample for sample in samples if sample.step == step]
        path = folder / str(step) / "gen_batch.dp"
        paths.append(proto(path, how(padded(mine)), others_of(mine), {"metrics": [{"tokens": 1.5}]}))
        (path.parent / "meta.json").write_text(json.dumps({"global_steps": step}))
    return paths


def queue(folder, samples):
    """Ragged fields, as the transfer queue hands them out."""
    paths = []
    for step in sorted({sample.step for sample in samples}):
        mine = [sample for sample in samples if sample.step == step]
        path = folder / str(step) / "0" / "tq_batch.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        tags = [{"status": "success", "min_global_steps": int(s.version[0]), "max_global_steps": step} for s in mine]
        keys = [f"uid-{s.group}_0_{i}" for i, s in enumerate(mine)]
        save_queue(path, {"tags": tags, "keys": keys, "global_steps": step}, ragged(mine))
        paths.append(path)
    return paths


def ragged(samples):
    rows = {
        name: [] for name in ("prompts", "responses", "response_mask", "rm_scores", "routed_experts", *NUMBERS.values())
    }
    for sample, response in zip(samples, responses_of(samples), strict=True):
        prompt = len(sample.tokens) - response
        rows["prompts"].append(sample.tokens[:prompt])
        rows["responses"].append(sample.tokens[prompt:])
        rows["response_mask"].append(sample.mask[prompt:].long())
        rows["rm_scores"].append(torch.zeros(response).index_fill(0, torch.tensor([response - 1]), sample.reward))
        rows["routed_experts"].append(sample.routes.clamp(min=0))
        for mine, theirs in NUMBERS.items():
            rows[theirs].append(getattr(sample, mine)[prompt:].float())
    return {name: torch.nested.as_nested_tensor(each, layout=torch.jagged) for name, each in rows.items()}


def save_queue(path, top, fields):
    def _make_td(cls, state):
        raise AssertionError("a reader must not call it")

    class NonTensorStack:
        pass

    class NonTensorData:
        pass

    class TensorDict:
        def __reduce__(self):
            return _make_td, (TensorDict, state)

    single, stack = NonTensorData(), NonTensorStack()
    single.__dict__.update(_tensordict={}, non_tensordict={"data": "gsm8k", "_is_non_tensor": True})
    stack.__dict__.update(stack_dim=0, tensordicts=[single, single])
    state = {"_tensordict": {**fields, "data_source": stack}, "_batch_size": torch.Size([2]), "_device": None}
    with named(
        tensordict___reductions=[_make_td],
        tensordict___td=[TensorDict],
        tensordict__tensorclass=[NonTensorStack, NonTensorData],
    ):
        torch.save({"tensordict": TensorDict(), **top}, path)
