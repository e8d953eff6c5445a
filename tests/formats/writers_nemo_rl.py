"""Samples as NeMo-RL writes them: a list of length 1 around every value, tokens padded to the longest of the step."""

import json

from encoders import encode_envelope

PAD = 0


def write(root, samples, routes=False, computed=True):
    """`root/train_data_stepN.jsonl`, numbered as the steps of the samples are."""
    root.mkdir(parents=True, exist_ok=True)
    for step in sorted({sample.step for sample in samples}):
        chosen = [sample for sample in samples if sample.step == step]
        longest = max(len(sample.tokens) for sample in chosen)
        rows = [record(sample, longest, routes, computed) | {"idx": i} for i, sample in enumerate(chosen)]
        (root / f"train_data_step{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sorted(root.glob("*.jsonl"))


def record(sample, longest, routes=False, computed=True):
    def padded(values):
        return [values.tolist() + [PAD] * (longest - len(values))]

    old = sample.logp_old if computed else sample.logp_old.new_zeros(len(sample.tokens))
    row = {
        "content": ["What is 1 + 1? \u2261 2"],
        "rewards": [sample.reward],
        "input_lengths": [len(sample.tokens)],
        "token_ids": padded(sample.tokens),
        "token_loss_mask": padded(sample.mask.long()),
        "sample_loss_mask": [1.0],
        "advantages": padded(sample.advantage),
        "generation_logprobs": padded(sample.logp_mu),
        "prev_logprobs": padded(old),
    }
    if routes:
        row["routed_experts"] = [encode_envelope(sample.routes[:-1])]
    return row
