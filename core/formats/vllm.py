"""vLLM's responses, saved as JSON lines: completions, chat completions, or those of `/inference/v1/generate`.

Shapes: P tokens of the prompt, R sampled ones, L = P + R, M layers (all of the model's), K experts a token.

| versions | routes of a choice |
|---|---|
| up to 0.20 | `routed_experts`, int32 `[L - 1, M, K]`, from the Python interface; 0 where missing |
| 0.21 | lists: `prompt_routed_experts` of the response `[P, M, K]`, `routed_experts` `[R - 1, M, K]`; -1 where cached |
| from 0.22 | `routed_experts`, a `.npy` file in base64 of uint8 or uint16, `[L - 1 - s, M, K]` |

The request's `routed_experts_prompt_start` s is not in the response: rows end with that of token L - 2, and so begin
with that of token s, unless the line holds a field of this name. Layers that are not MoE layers are 0. Log-probs below
-9999 are written as -9999.
Source: vllm-project/vllm, `vllm/entrypoints/openai/completion/protocol.py` and `docs/features/routed_experts.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .fields import ints, nested
from .format import Format, Options
from .lines import Line, head
from .npy import decode_npy
from .responses import Prompts, choices, logprobs, responses, sample_of, start_of
from .sample import Sample
from .wire import as_ids, laid

SEEN = 1 << 18  # bytes of a file in which the names of the fields are looked for: a response may begin with its text
CHOICES = re.compile(rb'(?<!\\)"choices"\s*:\s*\[')
OTHERS = re.compile(rb'(?<!\\)"(meta_info|sglext|sgl_ext|matched_stop|export_sequence_idx|generation_logprobs)"\s*:')
REMEDY = "ask the server with `return_token_ids`"


def read(paths: Sequence[Path], options: Options) -> Iterator[Sample]:
    """The samples of files, a choice each, by step; see `Format.read`."""
    prompts = Prompts()
    for step, line in responses(paths):
        for choice in choices(line):
            yield _sample(choice, step, prompts)


def _sample(choice: Line, step: int, prompts: Prompts) -> Sample:
    for name in ("prompt_token_ids", "token_ids"):
        if choice.fields.get(name) is None:
            raise choice.wrong(f"lacks `{name}`", REMEDY)
    prompt, sampled = ints(choice, "prompt_token_ids"), ints(choice, "token_ids")
    logp = logprobs(choice, len(prompt), len(sampled))
    routes = _routes(choice, len(prompt), len(prompt) + len(sampled))
    return sample_of(choice, step, prompts.group(prompt), prompt, sampled, logp, routes)


def _routes(choice: Line, prompt: int, length: int) -> tuple[Tensor | None, dict[str, int]]:
    before, rows = decode(choice, "prompt_routed_experts"), decode(choice, "routed_experts")
    start = start_of(choice, "routed_experts_prompt_start")
    if before is not None:
        if len(before) != prompt:
            raise choice.wrong(f"`prompt_routed_experts` has {len(before)} rows, and the prompt {prompt} tokens")
        if rows is not None and rows.shape[1:] != before.shape[1:]:
            raise choice.wrong("routes of the prompt and of the sampled tokens must have the same layers and experts")
        rows, start = before if rows is None else torch.cat([before, rows]), 0
    if rows is None:
        return None, {}
    return laid(choice, rows, length, max(length - 1 - len(rows), 0) if start is None else start)


def decode(choice: Line, name: str) -> Tensor | None:
    """Routes in a field of a choice, int16 `[N, M, K]`, of any version; None where it holds none.

    Raises:
        DataError: it is of no version's form.
    """
    held = choice.fields.get(name)
    if held is None or held == []:
        return None
    return decode_npy(choice, held) if isinstance(held, str) else as_ids(choice, nested(choice, name))


def _recognise(path: Path) -> bool:
    if path.suffix != ".jsonl":
        return False
    start = head(path, SEEN) or b""
    return start.startswith(b"{") and bool(CHOICES.search(start)) and not OTHERS.search(start)


VLLM = Format(
    name="vllm",
    title="responses of a vLLM server, JSON lines, a response a line",
    recognise=_recognise,
    read=read,
    conventions=(
        "the log-prob of a token stands beside it; prompts have none, unless they were echoed",
        "the log-prob -9999 stands for any below it, minus infinity among them",
        "route rows end with that of the last token but one; what rows are missing are those of the first tokens",
        "routes hold all layers of the model; those that are not MoE layers are 0",
        "the step is that of the file's name or folder, 0 where it has none; equal prompts are one group",
    ),
)
