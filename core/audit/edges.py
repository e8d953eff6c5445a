"""Edges of the mask: log-probs of the rollout that stand beside it.

Shapes: B responses, L positions.
"""

from __future__ import annotations

import torch

from firstorder.core.formats.chunk import Chunk

from .columns import sampled
from .finding import EACH, Detector, Finding, Known, Sums, first

OFF_SHARE = 0.5  # of the responses with log-probs beside the mask, for the mask to be called shifted


def edge_sums(chunk: Chunk) -> Sums:
    """Responses whose rollout log-probs begin or end beside the mask: a number right outside, none right inside."""
    assert chunk.logp_mu is not None
    mask, there = sampled(chunk), chunk.logp_mu.nan_to_num(-1.0) != 0
    there[:, 0] = False
    outside = there & ~mask
    # a run of the mask whose array is late by one: no number at its first token, one right after its last; or early
    last = mask & ~torch.roll(mask, -1, dims=-1)
    start = mask & ~torch.roll(mask, 1, dims=-1)
    after = (torch.roll(last, 1, dims=-1) & outside).any(-1) & (start & ~there).any(-1)
    before = (torch.roll(start, -1, dims=-1) & outside).any(-1) & (last & ~there).any(-1)
    counted = mask.any(-1)
    prompt = torch.arange(mask.shape[-1]) < mask.int().argmax(-1, keepdim=True)
    return {
        "tokens": (outside & counted[:, None]).sum(),
        "prompt": (outside & counted[:, None] & prompt).sum(),
        "responses": counted.sum(),
        EACH + "late": after & counted,
        EACH + "early": before & counted,
        EACH + "outside": outside.any(-1) & counted,
    }


def judge_edges(sums: Sums, known: Known) -> Finding | None:
    """Any response with a log-prob off the mask."""
    outside = sums[EACH + "outside"]
    if not outside.any():
        return None
    late, early = (int(sums[EACH + name].sum()) for name in ("late", "early"))
    if max(late, early) >= OFF_SHARE * int(outside.sum()):
        told = (
            f"in {max(late, early)} they end one token {'after' if late >= early else 'before'} the mask and so begin"
        )
    elif int(sums["prompt"]) == int(sums["tokens"]):
        told = "all of them on the prompt"
    else:
        told = "the mask leaves out tokens to which the engine gave a log-prob"
    return Finding(
        fault="log-probs off the mask",
        evidence=f"{int(sums['tokens'])} log-probs of the rollout stand off the mask, in {int(outside.sum())} of "
        f"{int(sums['responses'])} responses; {told}.",
        questions=(
            "is the mask shifted against the log-probs, or narrower than what was sampled?",
            "does the engine return log-probs of the prompt, and does the loss count them?",
        ),
        place=first(outside),
    )


DETECTORS = (
    Detector(
        fault="log-probs off the mask",
        stage=2,
        needs=("logp_mu",),
        measure=edge_sums,
        judge=judge_edges,
        rule="any log-prob of the rollout that is not 0 where the mask is False, position 0 apart",
    ),
)
