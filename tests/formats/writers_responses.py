"""Samples as the responses of servers: what vLLM and SGLang answer, a response a line, n choices where prompts are one.

A response is one prompt and what follows it, so that samples with an environment's answer have no place here: `spoken`
leaves them out.
"""

import json

import torch
from encoders import encode, encode_npy


def spoken(samples):
    return [sample for sample in samples if sample.mask[prompt_of(sample) :].all()]


def prompt_of(sample):
    return int(sample.mask.int().argmax())


def write(root, samples, answer, name="responses.jsonl"):
    """`root/step_N/NAME`, of what `answer` makes of each sample."""
    for step in sorted({sample.step for sample in samples}):
        folder = root / f"step_{step}"
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(answer(sample)) + "\n" for sample in samples if sample.step == step)
        (folder / name).write_text(text)
    return sorted(root.rglob("*.jsonl"))


def completion(sample, start=0, dtype=torch.uint8):
    """vLLM from 0.22 on: a `.npy` file in base64."""
    prompt = prompt_of(sample)
    tokens, mu = sample.tokens.tolist(), sample.logp_mu.tolist()
    routes = encode_npy(sample.routes[start:-1].to(dtype))
    choice = {
        "index": 0,
        "text": "two",
        "logprobs": {"text_offset": [], "token_logprobs": mu[prompt:], "tokens": [], "top_logprobs": []},
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": tokens[prompt:],
        "prompt_logprobs": None,
        "prompt_token_ids": tokens[:prompt],
        "routed_experts": routes,
    }
    return {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice], "usage": {}}


def chat(sample):
    """vLLM's chat completions: the prompt beside the choices, log-probs in `content`."""
    whole = completion(sample)
    choice = whole["choices"][0]
    content = [{"token": "t", "logprob": x, "bytes": None} for x in choice["logprobs"]["token_logprobs"]]
    whole["prompt_token_ids"] = choice.pop("prompt_token_ids")
    return whole | {
        "object": "chat.completion",
        "choices": [choice | {"message": {"role": "assistant", "content": "two"}, "logprobs": {"content": content}}],
    }


def split(sample):
    """vLLM 0.21: routes of the prompt and of what was sampled apart, as lists."""
    whole, prompt = chat(sample), prompt_of(sample)
    whole["prompt_routed_experts"] = sample.routes[:prompt].tolist()
    whole["choices"][0]["routed_experts"] = sample.routes[prompt:-1].tolist()
    return whole


def whole_lists(sample):
    """vLLM up to 0.20: all routes as an int32 array of the Python interface, listed."""
    answer = completion(sample)
    answer["choices"][0]["routed_experts"] = sample.routes[:-1].tolist()
    return answer


def generate(sample, start=0):
    """SGLang's `/generate`."""
    prompt = prompt_of(sample)
    tokens, mu = sample.tokens.tolist(), sample.logp_mu.tolist()
    about = {
        "id": "1",
        "finish_reason": {"type": "stop", "matched": 2},
        "prompt_tokens": prompt,
        "weight_version": str(sample.step),
        "completion_tokens": len(tokens) - prompt,
        "cached_tokens": 0,
        "input_token_logprobs": [[None if i == 0 else 0.0, t, None] for i, t in enumerate(tokens[:prompt])],
        "output_token_logprobs": [[x, t, None] for x, t in zip(mu[prompt:], tokens[prompt:], strict=True)],
        "routed_experts": encode(sample.routes[start:-1].int()),
    }
    if start:
        about["routed_experts_start_len"] = start
    return {"text": "two", "output_ids": tokens[prompt:], "meta_info": about}


def openai(sample):
    """SGLang in the form of OpenAI, with `return_meta_info` and `return_prompt_token_ids`; routes in `sglext`."""
    native, prompt = generate(sample), prompt_of(sample)
    about = native["meta_info"] | {"input_token_logprobs": None}
    choice = {"index": 0, "message": {"role": "assistant"}, "matched_stop": 2, "meta_info": about}
    return {
        "object": "chat.completion",
        "choices": [choice],
        "prompt_token_ids": sample.tokens[:prompt].tolist(),
        "sglext": {"routed_experts": about.pop("routed_experts")},
    }
