"""Log-probs and entropies made where the logits are, a chunk of positions at a time.

The logits are the largest tensor of a forward pass: 8192 tokens of a vocabulary of 152 000 take 5 GB in float32, and
their log-softmax and its gradient as much again. In chunks, head and log-softmax run over P / chunks positions at a
time and once more in the backward pass, so that the logits of one chunk exist at a time. torchtitan's
`ChunkedLossWrapper` saves the same memory by a backward pass inside the loss; here a weight may read log-probs of other
rows and of other ranks, which are not there yet.

Shapes: R packed rows, P positions of a row, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from firstorder.core.training.kept import entropy as kept_entropy
from firstorder.core.training.kept import totals

from .adapter import IGNORE_INDEX, Linear, Qwen3Model, compute_logprobs, derive, whole_vocabulary


class ScoringHead(Linear):
    """The output layer: logits, or with labels their log-probs and entropies."""

    @dataclass(kw_only=True, slots=True)
    class Config(Linear.Config):
        """As of `Linear`; `chunks` of the positions are scored one after the other."""

        chunks: int = 1

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.chunks = config.chunks

    def forward(
        self,
        input: Tensor,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        entropy: bool = False,
        kept: Tensor | None = None,
        spread: bool = False,
    ) -> Any:
        """Logits `[R, P, V]` of `input` `[R, P, D]`; with `labels` `[R, P]` the scores of `_score`."""
        if labels is None:
            return F.linear(input, self.weight)
        if self.chunks == 1:
            return _score(input, self.weight, labels, temperature, entropy, kept, spread)
        again = partial(checkpoint, _score, use_reentrant=False, preserve_rng_state=False)
        parts = input.chunk(self.chunks, 1)
        pieces = [
            again(hidden, self.weight, wanted, temperature, entropy, ids, spread)
            for hidden, wanted, ids in zip(
                parts,
                labels.chunk(self.chunks, 1),
                [None] * len(parts) if kept is None else kept.chunk(self.chunks, 1),
                strict=True,
            )
        ]
        return tuple(torch.cat(one, dim=1) for one in zip(*pieces, strict=True))


class ScoringModel(Qwen3Model):
    """torchtitan's Qwen3-MoE, which hands the labels on to its head."""

    @dataclass(kw_only=True, slots=True)
    class Config(Qwen3Model.Config):
        """As of `Qwen3Model`."""

    _skip_lm_head = True  # of `Decoder.forward`, which would call it without labels

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        attention_masks: Any = None,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        entropy: bool = False,
        kept: Tensor | None = None,
        spread: bool = False,
    ) -> Any:
        """What the head makes of the last hidden state of `tokens` `[R, P]`."""
        hidden = super().forward(tokens, positions, attention_masks)
        return self.lm_head(hidden, labels, temperature, entropy, kept, spread)


def scoring(config: Any, chunks: int) -> Any:
    """A model config with this model and head in place of its own, after it was laid out and before it is built."""
    head = derive(config.lm_head, ScoringHead.Config, chunks=chunks)
    if head.sharding_config is not None:  # scores are whole on every rank, whatever the layout of the logits
        head.sharding_config = replace(head.sharding_config, out_src_shardings=None, out_dst_shardings=None)
    return derive(config, ScoringModel.Config, lm_head=head)


def _score(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float,
    entropy: bool,
    kept: Tensor | None,
    spread: bool,
) -> tuple[Tensor, ...]:
    """log p of the labels and, where it is asked for, the entropy of their distribution, nats `[R, P]` each; over the
    tokens `kept` `[R, P, C]` where these are given, and then with the entropy the mass outside of them.

    torchtitan's entropy has no gradient; with `spread` it has one, and the logits are gathered before both are made.
    """
    if kept is not None:
        return _score_kept(
            whole_vocabulary(_logits(hidden, weight, temperature)).float(), labels, entropy or spread, kept
        )
    if spread:
        logits = whole_vocabulary(_logits(hidden, weight, temperature))
        return compute_logprobs(logits, labels), _entropy(logits)
    # without a name here they are let go as soon as they are float32
    scores = compute_logprobs(_logits(hidden, weight, temperature), labels, return_entropy=entropy)
    return scores if entropy else (scores,)


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    return F.linear(hidden, weight) / temperature


def _score_kept(logits: Tensor, labels: Tensor, entropy: bool, kept: Tensor) -> tuple[Tensor, ...]:
    inside, whole = totals(logits, kept)
    said = labels != IGNORE_INDEX
    own = logits.gather(-1, labels.where(said, 0)[..., None])[..., 0]
    logp = torch.where(said, own - inside, 0.0)
    return (logp, kept_entropy(logits, kept), -(inside - whole).detach().expm1()) if entropy else (logp,)


def _entropy(logits: Tensor) -> Tensor:
    """-Σ_v p(v) log p(v), float32 `[R, P]`."""
    logp = logits.float().log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)
