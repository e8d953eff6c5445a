"""The batches of a training run as samples: what `firstorder train --dump` writes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from firstorder.core.training.backend import Scored

from .sample import Sample


def samples_of(step: int, scored: Scored, member: int | None = None) -> Iterator[Sample]:
    """The responses of a step as the update saw them, without padding.

    Args:
        step: the global step, whose weights sampled every token: a run is synchronous.
        scored: with its advantages.
        member: of an ensemble, whose axis leads; None where there is none.
    """

    def own(x: Tensor | None) -> Tensor | None:
        return x if x is None or member is None else x[member]

    batch = scored.batch
    columns = [own(x) for x in (batch.tokens, batch.mask, batch.lengths, batch.logp_mu, batch.rewards, batch.groups)]
    tokens, mask, lengths, logp_mu, rewards, groups = (x for x in columns if x is not None)
    logp_old, advantage, entropy = own(scored.logp_old), own(scored.advantage), own(scored.entropy)
    routes, routes_old = own(batch.routes), own(scored.routes)
    for row, length in enumerate(lengths.tolist()):
        chosen = mask[row, :length]

        def cut(x: Tensor | None, row: int = row, length: int = length, chosen: Tensor = chosen) -> Tensor | None:
            """Numbers of the response's tokens, 0 on the others."""
            if x is None:
                return None
            each = x[row].expand(length) if x.ndim == 1 else x[row, :length]
            return torch.where(chosen, each.detach().double().cpu(), 0.0)

        yield Sample(
            source=f"step {step} response {row}",
            step=step,
            tokens=tokens[row, :length].cpu(),
            mask=chosen.cpu(),
            logp_mu=cut(logp_mu),
            logp_old=cut(logp_old),
            entropy=cut(entropy),
            advantage=cut(advantage),
            version=torch.full((length,), step),
            routes=_rows(routes, row, length),
            routes_old=_rows(routes_old, row, length),
            reward=float(rewards[row]),
            group=int(groups[row]),
        )


def _rows(routes: Tensor | None, row: int, length: int) -> Tensor | None:
    """The rows of a response's tokens; the last token is never run."""
    if routes is None:
        return None
    rows = routes[row, :length].to(torch.int16).cpu().clone()
    rows[-1] = -1
    return rows
