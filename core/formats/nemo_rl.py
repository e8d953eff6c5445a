"""NeMo-RL's training data: a line a response, a file a step, `train_data_stepN.jsonl`.

Every value of a line but `idx` is a list of length 1 around the response's. Lists of tokens are padded to the longest
of the step and cut by `input_lengths`; position t is token t, and the log-probs of position 0 are 0.

| field | of `Sample` |
|---|---|
| `token_ids`, `input_lengths` | `tokens` |
| `token_loss_mask` where `sample_loss_mask` is not 0 | `mask` |
| `generation_logprobs`, `prev_logprobs` | `logp_mu`, `logp_old` |
| `advantages`, `rewards` | `advantage`, `reward` |
| every other list of a number a token | `columns`, under its own name |
| `routed_experts`, where a job was made to write it | `routes`, see `wire` |

A run with `force_on_policy_ratio` does not compute `prev_logprobs` and writes zeros: such a response has none. Source:
NVIDIA-NeMo/RL, `nemo_rl/algorithms/grpo.py` and `Logger.log_batched_dict_as_jsonl` in `nemo_rl/utils/logger.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .fields import column, flags, floats, integer, ints, number, text
from .format import Format, Options
from .lines import Line, head, lines
from .sample import Sample
from .wire import decode_envelope, laid

LISTS = {"token_ids", "token_loss_mask", "generation_logprobs", "prev_logprobs", "advantages"}
USED = LISTS | {"input_lengths", "sample_loss_mask", "rewards", "routed_experts"}
NAME = re.compile(r"train_data_step(\d+)\.jsonl")


def read(paths: Sequence[Path], options: Options) -> Iterator[Sample]:
    """The samples of files, by step; see `Format.read`."""
    for path in sorted(paths, key=lambda each: (_step(each), str(each))):
        for line in lines(path):
            yield _sample(_unwrapped(line), _step(path))


def _unwrapped(line: Line) -> Line:
    """A line without the lists of length 1 around its values."""
    for name in ("token_ids", "input_lengths"):
        if name not in line.fields:
            raise line.wrong(f"lacks `{name}`", "only runs of GRPO in newer versions of NeMo-RL write tokens")
    fields = {name: values[0] for name, values in line.fields.items() if isinstance(values, list) and len(values) == 1}
    for name in USED & line.fields.keys() - fields.keys():
        raise line.wrong(f"`{name}` must be a list of length 1 around what is the response's")
    return Line(source=line.source, fields=fields)


def _sample(line: Line, step: int) -> Sample:
    padded, length = ints(line, "token_ids"), integer(line, "input_lengths")
    if not 0 < length <= len(padded):
        raise line.wrong(f"`input_lengths` must be in 1 .. {len(padded)}, the tokens there are, got {length}")

    def cut(name: str) -> Tensor:
        return floats(line, name, len(padded))[:length].clone()

    mask, counts = flags(line, "token_loss_mask", len(padded))[:length].clone(), number(line, "sample_loss_mask")
    if counts not in (0, 1):
        raise line.wrong(f"`sample_loss_mask` must be 0 or 1, got {counts:g}")
    mu, old, advantage = cut("generation_logprobs"), cut("prev_logprobs"), _advantage(line, len(padded), length)
    computed = bool((old != 0).any())
    reward = number(line, "rewards") if "rewards" in line.fields else None
    routes, notes = _routes(line, length)
    notes |= {
        "null rewards": int(reward != reward),
        "null generation_logprobs": int(mu.isnan().sum()),
        "null prev_logprobs": int(old.isnan().sum()),
        "responses whose prev_logprobs are all 0: not computed": int(not computed),
        "responses left out of the loss": int(not counts),
    }
    return Sample(
        source=line.source,
        step=step,
        tokens=padded[:length].clone(),
        mask=mask if counts else mask.zero_(),
        logp_mu=mu,
        logp_old=old if computed else None,
        advantage=advantage,
        reward=None if reward != reward else reward,
        routes=routes,
        columns=_others(line, len(padded), length),
        notes={name: count for name, count in notes.items() if count},
    )


def _advantage(line: Line, padded: int, length: int) -> Tensor | None:
    """One a token, or one for all."""
    if "advantages" not in line.fields:
        return None
    if isinstance(line.fields["advantages"], list):
        return floats(line, "advantages", padded)[:length].clone()
    return torch.full((length,), number(line, "advantages"), dtype=torch.float64)


def _others(line: Line, padded: int, length: int) -> dict[str, Tensor]:
    """Lists of numbers that have no place of their own."""
    names = [name for name in line.fields.keys() - USED if name.isprintable()]
    found = {name: column(line, name, padded) for name in sorted(names)}
    return {name: values[:length].clone() for name, values in found.items() if values is not None}


def _routes(line: Line, length: int) -> tuple[Tensor | None, dict[str, int]]:
    if line.fields.get("routed_experts") is None:
        return None, {}
    return laid(line, decode_envelope(line, text(line, "routed_experts")), length)


def _step(path: Path) -> int:
    found = NAME.fullmatch(path.name)
    return int(found[1]) if found else 0


def _recognise(path: Path) -> bool:
    if not NAME.fullmatch(path.name):
        return False
    start = head(path, 1)
    return start is not None and start in (b"", b"{")


NEMO_RL = Format(
    name="nemo-rl",
    title="NeMo-RL's train_data_stepN.jsonl, JSON lines, a line a response",
    recognise=_recognise,
    read=read,
    conventions=(
        "position t of every list is token t, and its log-prob is that of token t given those before it",
        "lists are padded at the end and cut by `input_lengths`; the log-probs of position 0 are 0",
        "a response is masked throughout where `sample_loss_mask` is 0",
        "`prev_logprobs` that are 0 throughout were not computed (`force_on_policy_ratio`)",
    ),
)
