"""What the responses of inference servers have in common: a prompt, its tokens, their log-probs, routes.

Shapes: P tokens of the prompt, R sampled ones, L = P + R.

A server does not say which step of training asked, so that the step is that of the path, `step_12.jsonl` or
`step_12/...`, and 0 where it has none. Responses whose prompts are the same tokens are one group.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .fields import floats, inner, integer, listed
from .lines import Line, kind, lines
from .sample import Sample

STEP = re.compile(r"step[_-]?(\d{1,9})(?!\d)")
GENERATED = "the log-probs must be those of the tokens that were sampled, or of all"


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts met so far, told from one another by their tokens."""

    seen: dict[bytes, int] = field(default_factory=dict)

    def group(self, prompt: Tensor) -> int:
        """The number of a prompt, in the order in which they were met."""
        key = hashlib.blake2b(repr(prompt.tolist()).encode(), digest_size=16).digest()
        return self.seen.setdefault(key, len(self.seen))


def responses(paths: Sequence[Path]) -> Iterator[tuple[int, Line]]:
    """The lines of files by step, with it."""
    for path in sorted(paths, key=lambda each: (step_of(each), str(each))):
        for line in lines(path):
            yield step_of(path), line


def choices(line: Line) -> Iterator[Line]:
    """The choices of a response in the form of OpenAI, each with what is said of all.

    Raises:
        DataError: it has none.
    """
    around = {name: value for name, value in line.fields.items() if name != "choices"}
    for place, choice in enumerate(listed(line, "choices")):
        source = f"{line.source} choice {place}"
        if not isinstance(choice, dict):
            raise Line(source=source, fields={}).wrong(f"must be an object, got {kind(choice)}")
        yield Line(source=source, fields=around | {name: value for name, value in choice.items() if value is not None})


def step_of(path: Path) -> int:
    """The step that a path names, in the file's name or that of its folder; else 0."""
    found = STEP.search(path.name) or STEP.search(path.parent.name)
    return int(found[1]) if found else 0


def logprobs(line: Line, prompt: int, sampled: int) -> Tensor | None:
    """The log-probs of a choice in the form of OpenAI, float64 `[L]`; None where it has none.

    Raises:
        DataError: they are not as many as the sampled tokens, or as all.
    """
    if line.fields.get("logprobs") is None:
        return None
    held = inner(line, "logprobs")
    if held.fields.get("token_logprobs") is None and held.fields.get("content") is not None:
        entries = listed(held, "content")
        if not all(isinstance(entry, dict) and "logprob" in entry for entry in entries):
            raise line.wrong("`logprobs.content` must hold objects with a `logprob`")
        held = Line(source=line.source, fields={"token_logprobs": [entry["logprob"] for entry in entries]})
    values = floats(held, "token_logprobs")
    if len(values) not in (sampled, prompt + sampled):
        raise line.wrong(f"has {len(values)} log-probs and {sampled} sampled tokens", GENERATED)
    return torch.cat([values.new_zeros(prompt + sampled - len(values)), values])


def start_of(line: Line, name: str) -> int | None:
    """The token of the first route row, where the response says it."""
    return None if line.fields.get(name) is None else integer(line, name)


def sample_of(
    line: Line,
    step: int,
    group: int,
    prompt: Tensor,
    sampled: Tensor,
    logp: Tensor | None,
    routes: tuple[Tensor | None, dict[str, int]],
    version: int | None = None,
) -> Sample:
    """A response as a sample; the prompt is off the mask."""
    tokens = torch.cat([prompt, sampled])
    rows, notes = routes
    nulls = 0 if logp is None else int(logp[1:].isnan().sum())
    mask = torch.arange(len(tokens)) >= len(prompt)
    return Sample(
        source=line.source,
        step=step,
        tokens=tokens,
        mask=mask,
        logp_mu=logp,
        version=None if version is None else torch.where(mask, version, -1),
        routes=rows,
        group=group,
        notes=notes | ({"null log-probs": nulls} if nulls else {}),
    )
