"""SGLang's responses, saved as JSON lines: those of `/generate`, or in the form of OpenAI with `return_meta_info`.

Shapes: P tokens of the prompt, R sampled ones, L = P + R, N route rows, M layers (all of the model's), K experts.

| what | where |
|---|---|
| sampled tokens | `output_ids`, `token_ids`, or in `meta_info.output_token_logprobs` |
| their log-probs | `meta_info.output_token_logprobs`, entries (log-prob, token, text), or the choice's `logprobs` |
| the prompt's tokens | `prompt_token_ids`, `input_ids`, or in `meta_info.input_token_logprobs` from position 0 on |
| weights | `meta_info.weight_version`, where it is a number |
| routes | `routed_experts` of `meta_info`, `sglext` or `sgl_ext`: int32 in base64, flat, rows s .. L - 2 |
| s | `routed_experts_start_len` beside them, else 0 |

Routes are flat: that N·M·K ids are N rows follows from the tokens, and K from the ids, since those of a layer are
distinct: K is the largest divisor of M·K that keeps them so in the first responses, unless the user says it.
Source: sgl-project/sglang, `srt/managers/tokenizer_manager.py`, `srt/managers/io_struct.py`, `srt/entrypoints/openai`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .fields import floats, inner, integer, ints, listed, text
from .format import Format, Options
from .lines import Line, head
from .responses import Prompts, choices, logprobs, responses, sample_of, start_of
from .sample import Sample
from .wire import as_ids, decode, laid

SEEN = 1 << 18  # bytes of a file in which the names of the fields are looked for: a response may begin with its text
OWN = re.compile(rb'(?<!\\)"(meta_info|sglext|sgl_ext|matched_stop)"\s*:')
WIDEST = 1 << 14  # ids a token, M·K: 94 layers of 8 are 752
FIRST, ROWS = 64, 256  # responses that K is told from, and rows of each
HOLDERS = ("meta_info", "sglext", "sgl_ext")


def read(paths: Sequence[Path], options: Options) -> Iterator[Sample]:
    """The samples of files, a choice each, by step; see `Format.read`."""
    prompts, top_k, noted = Prompts(), options.top_k or _top_k(paths), options.top_k is not None
    for step, choice in _choices(paths):
        sample = _sample(choice, step, prompts, top_k)
        if sample.routes is not None and not noted:
            sample, noted = replace(sample, notes={**sample.notes, f"experts a token taken to be {top_k}": 1}), True
        yield sample


def _choices(paths: Sequence[Path]) -> Iterator[tuple[int, Line]]:
    for step, line in responses(paths):
        for choice in choices(line) if "choices" in line.fields else (line,):
            yield step, choice


def _sample(choice: Line, step: int, prompts: Prompts, top_k: int) -> Sample:
    prompt, sampled, logp = _tokens(choice)
    length = len(prompt) + len(sampled)
    rows, start = _rows(choice, length)
    routes: tuple[Tensor | None, dict[str, int]] = (None, {})
    if rows is not None:
        if rows.shape[1] % top_k:
            raise choice.wrong(f"routes hold {rows.shape[1]} ids a token, no multiple of {top_k}", "give --top-k")
        routes = laid(choice, as_ids(choice, rows.reshape(len(rows), -1, top_k)), length, start)
    return sample_of(choice, step, prompts.group(prompt), prompt, sampled, logp, routes, _version(choice))


def _tokens(choice: Line) -> tuple[Tensor, Tensor, Tensor | None]:
    """The prompt, the sampled tokens, and the log-probs of all, with what the response holds of the prompt's."""
    about = inner(choice, "meta_info") if "meta_info" in choice.fields else Line(source=choice.source, fields={})
    own, before = _entries(about, "output_token_logprobs"), _entries(about, "input_token_logprobs")
    sampled = next((ints(choice, name) for name in ("output_ids", "token_ids") if name in choice.fields), None)
    if own is not None:
        if sampled is not None and not torch.equal(sampled, own[1]):
            raise choice.wrong("`output_ids` and the tokens of `output_token_logprobs` differ")
        sampled = own[1]
    if sampled is None:
        raise choice.wrong("lacks `output_ids`", "ask the server with `return_logprob`, or with `return_meta_info`")
    prompt = _prompt(choice, about, before)
    if own is None:
        return prompt, sampled, logprobs(choice, len(prompt), len(sampled))
    known = before is not None and torch.equal(before[1], prompt)
    first = before[0] if known and before is not None else torch.zeros(len(prompt), dtype=torch.float64)
    return prompt, sampled, torch.cat([first, own[0]])


def _prompt(choice: Line, about: Line, before: tuple[Tensor, Tensor] | None) -> Tensor:
    for place, name in ((choice, "prompt_token_ids"), (choice, "input_ids"), (about, "prompt_token_ids")):
        if place.fields.get(name) is not None:
            return ints(place, name)
    if before is not None and len(before[1]) == integer(about, "prompt_tokens"):
        return before[1]
    raise choice.wrong("lacks the tokens of the prompt", "ask with `logprob_start_len` 0 or `return_prompt_token_ids`")


def _entries(about: Line, name: str) -> tuple[Tensor, Tensor] | None:
    """Log-probs and tokens of a list of (log-prob, token, text)."""
    if about.fields.get(name) is None:
        return None
    entries = listed(about, name)
    if not all(isinstance(entry, list) and len(entry) >= 2 for entry in entries):
        raise about.wrong(f"`{name}` must hold entries (log-prob, token, text)")
    parts = {name: [entry[0] for entry in entries], f"tokens of {name}": [entry[1] for entry in entries]}
    split = Line(source=about.source, fields=parts)
    return floats(split, name), ints(split, f"tokens of {name}")


def _rows(choice: Line, length: int) -> tuple[Tensor | None, int]:
    """Route rows `[N, M·K]`, and the token of the first."""
    holders = (inner(choice, name) for name in HOLDERS if choice.fields.get(name) is not None)
    holder = next((each for each in holders if each.fields.get("routed_experts") is not None), None)
    if holder is None:
        return None, 0
    start = start_of(holder, "routed_experts_start_len") or 0
    flat, rows = decode(holder, text(holder, "routed_experts"), torch.int32), length - 1 - start
    if rows <= 0 and not len(flat):
        return None, 0
    if rows <= 0 or len(flat) % rows or not len(flat):
        raise holder.wrong(
            f"routes hold {len(flat)} ids, which are no {max(rows, 0)} rows, those from token {start} on"
        )
    return flat.reshape(rows, -1), start


def _top_k(paths: Sequence[Path]) -> int:
    """The largest number of experts a token that the first responses allow; 1 where they have no routes."""
    possible: set[int] | None = None
    for _, choice in islice(_choices(paths), FIRST):
        prompt, sampled, _ = _tokens(choice)
        rows, _ = _rows(choice, len(prompt) + len(sampled))
        if rows is not None:
            sizes = possible or {k for k in range(1, rows.shape[1] + 1) if rows.shape[1] % k == 0}
            possible = {k for k in sizes if rows.shape[1] % k == 0 and distinct(rows[:ROWS], k)}
    return max(possible or {1})


def distinct(rows: Tensor, top_k: int) -> bool:
    """Whether every layer's ids are distinct; a row, or a layer throughout, that is one number is a fill.

    Args:
        rows: `[N, M·K]`.
        top_k: K.
    """
    known = rows[(rows != rows[:, :1]).any(-1)]
    ids = known.reshape(len(known), -1, top_k).sort(-1).values
    repeated = (ids[..., 1:] == ids[..., :-1]).any(-1)
    fills = (ids == ids[:1, :, :1]).all(-1).all(0)
    return not bool((repeated & ~fills).any())


def _version(choice: Line) -> int | None:
    held: Any = choice.fields.get("meta_info")
    version = held.get("weight_version") if isinstance(held, dict) else None
    if isinstance(version, str) and re.fullmatch(r"[0-9]{1,18}", version):
        return int(version)
    return version if type(version) is int and 0 <= version < 1 << 62 else None


def _recognise(path: Path) -> bool:
    if path.suffix != ".jsonl":
        return False
    start = head(path, SEEN) or b""
    return start.startswith(b"{") and bool(OWN.search(start))


SGLANG = Format(
    name="sglang",
    title="responses of an SGLang server, JSON lines, a response a line",
    recognise=_recognise,
    read=read,
    conventions=(
        "the log-prob of a token stands beside it; prompts have theirs where they were asked for",
        "route rows begin with that of token `routed_experts_start_len` and end with that of the last token but one",
        "routes hold all layers of the model; experts a token are told from the ids, unless --top-k says them",
        "the step is that of the file's name or folder, 0 where it has none; equal prompts are one group",
    ),
)
