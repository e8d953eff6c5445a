"""Routing: which experts a token visits, with what gates, and how two routings differ.

Shapes: `...` any leading axes, E experts, K experts a token.
Replay replaces the ids only. Gates are always made from the live scores, so the router keeps its gradient.
A replayed row is K distinct ids, or -1 throughout: that token routes live.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from .errors import DataError
from .router import Router
from .softmax import softmax

Routes = TypeVar("Routes")
FEW = 4  # experts a token, up to which comparing all pairs is faster than sorting


@dataclass(frozen=True, kw_only=True)
class Routing:
    """One layer's decision: `ids` int64 `[..., K]` in the router's own order, `live` `[..., K]`, what it would have
    chosen without replay, `gates` `[..., K]`, and `selection` `[..., E]`, the scores that the choice was made by, -inf
    for experts of closed groups."""

    ids: Tensor
    live: Tensor
    gates: Tensor
    selection: Tensor

    @property
    def margin(self) -> Tensor:
        """How far the live choice is from flipping, `[...]`; see `margin`."""
        last = self.selection.gather(-1, self.live[..., -1:])[..., 0]
        return last - self.selection.scatter(-1, self.live, -torch.inf).amax(-1)


def route(logits: Tensor, router: Router, bias: Tensor | None = None, replay: Tensor | None = None) -> Routing:
    """Choose experts and form their gates.

    Args:
        logits: `[..., E]` router logits.
        router: the kind and its sizes.
        bias: `[E]`-broadcastable selection bias of the sigmoid kinds; it never enters a gate.
        replay: `[..., K]` ids to use instead of the live choice, -1 where live.

    Returns:
        The routing. Gradients reach `logits` through the gates only.
    """
    scores = score(logits, router)
    selection = restrict((scores if bias is None else scores + bias).detach(), router)
    ids = live = selection.topk(router.top_k, dim=-1).indices
    if replay is not None:
        ids = replayed(replay.to(live.dtype), live)
    return Routing(ids=ids, live=live, gates=gate_weights(logits, scores, ids, router), selection=selection)


def replay_of(mode: str, old: Routes, mu: Routes) -> Routes | None:
    """The routes that a replay mode gives to π: none, those of π_old (R2) or those of μ_old (R3)."""
    return {"disabled": None, "R2": old, "R3": mu}[mode]


def replayed(given: Tensor, live: Tensor) -> Tensor:
    """The given ids, and the live choice in rows of -1; both `[..., K]`."""
    return torch.where(given >= 0, given, live)


def score(logits: Tensor, router: Router) -> Tensor:
    """Scores over all experts `[..., E]`: softmax or sigmoid of the logits; the logits where top-k comes first."""
    if router.kind in ("sigmoid_bias", "group_limited"):
        return logits.sigmoid()
    return logits if router.kind == "topk_softmax" else softmax(logits)


def restrict(selection: Tensor, router: Router) -> Tensor:
    """Selection scores `[..., E]` with -inf outside the best groups, if the router is limited to groups."""
    if router.kind != "group_limited":
        return selection
    grouped = selection.reshape(*selection.shape[:-1], router.groups, -1)
    best = grouped.topk(2, dim=-1).values.sum(-1).topk(router.limited_groups, dim=-1).indices
    open_group = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, True)
    return grouped.masked_fill(~open_group[..., None], -torch.inf).flatten(-2)


def gate_weights(logits: Tensor, scores: Tensor, ids: Tensor, router: Router) -> Tensor:
    """Gate weights of the chosen experts from live scores, `[..., K]`."""
    if router.kind == "topk_softmax":
        return softmax(logits.gather(-1, ids))
    chosen = scores.gather(-1, ids)
    if router.kind == "top1":
        return chosen
    total = chosen.sum(-1, keepdim=True)
    if (total > 0).all():
        return chosen / total
    # replayed experts whose scores all underflow: a softmax of their logits is what the quotient tends to
    return torch.where(total > 0, chosen / total.where(total > 0, 1.0), logits.gather(-1, ids).softmax(-1))


def flips(a: Tensor, b: Tensor) -> Tensor:
    """Whether two routings choose different expert *sets*, bool `[...]` for ids `[..., K]`."""
    if a.shape[-1] > FEW:
        return (a.sort(-1).values != b.sort(-1).values).any(-1)
    same = [[x == y for y in b.unbind(-1)] for x in a.unbind(-1)]
    found = [reduce(torch.logical_or, hits) for hits in (*same, *zip(*same, strict=True))]
    agree: Tensor = reduce(torch.logical_and, found)
    return ~agree


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """|A ∩ B| / |A ∪ B| of two expert sets, `[...]`."""
    shared = (a[..., :, None] == b[..., None, :]).any(-1).sum(-1)
    return shared / (a.shape[-1] + b.shape[-1] - shared)


def replay_rows(replayed: Tensor, live: Tensor, run: Tensor) -> dict[str, Tensor]:
    """Rows of each MoE layer: `replayed`, routed `live`, and `changed`, replayed with another set than the live one.

        replayed_m = Σ_n run_n [replayed_nm >= 0],   changed_m = Σ_n run_n [replayed_nm >= 0, set differs from live_nm]

    Args:
        replayed: `[..., N, M, K]` ids that took the place of the router's choice, -1 throughout where none did.
        live: `[..., N, M, K]` what the routers would have chosen in the same forward.
        run: `[..., N]`, True on the rows that count, or how much each counts (its probability).

    Returns:
        `[..., M]` float64 each: whole numbers of rows, or their expectations.
    """
    count = run.double()[..., None]
    given = (replayed >= 0).all(-1)
    hits = {"replayed": given, "live": ~given, "changed": given & flips(replayed, live)}
    return {name: (count * hit).sum(-2) for name, hit in hits.items()}


def repeats(routes: Tensor, before: Tensor) -> Tensor:
    """Rows that look like a fill rather than a choice, bool `[..., M]`: a copy of a neighbour, in order.

    A row is one where a layer has the ids of the token before, or where all layers of a token have the same ids: what
    a last row that is repeated, one row for a response, or one for all layers leave behind. Rows of -1 are none.

    Args:
        routes: `[..., M, K]` ids.
        before: `[..., M, K]` those of the token before, -1 where there is none.
    """
    copied = (routes == before).all(-1)
    flat = (routes == routes[..., :1, :]).all(-1).all(-1, keepdim=True) & (routes.shape[-2] > 1)
    return (copied | flat) & (routes >= 0).all(-1)


def margin(selection: Tensor, top_k: int) -> Tensor:
    """k-th minus (k+1)-th largest selection score, `[...]`: how far a route is from flipping (within its groups)."""
    if top_k >= selection.shape[-1]:
        return torch.full_like(selection[..., 0], torch.inf)
    best = selection.topk(top_k + 1, dim=-1).values
    return best[..., -2] - best[..., -1]


def check_routes(ids: Tensor, experts: int) -> None:
    """Refuse route rows that are neither K distinct ids in range nor -1 throughout.

    Args:
        ids: `[..., K]` integer.
        experts: number of experts E.

    Raises:
        DataError: naming the first broken rule.
    """
    live = (ids == -1).all(-1)
    if not (live | (ids >= 0).all(-1)).all():
        raise DataError("a route row must be all ids or all -1 (live), got a row with both")
    if (ids >= experts).any():
        raise DataError(f"route ids must be below experts = {experts}, got {int(ids.max())}")
    ordered = ids.sort(-1).values
    repeated = (ordered[..., 1:] == ordered[..., :-1]).any(-1) & ~live
    if repeated.any():
        raise DataError(f"a route row must name distinct experts, got {ids[repeated][0].tolist()}; padding leaked in?")
