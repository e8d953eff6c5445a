"""Routing: which experts a token visits, with what gates, and how two routings differ.

Shapes: `...` any leading axes, E experts, K experts a token, M MoE layers.
Replay replaces the ids. Gates are made from the live scores, so that the router keeps its gradient, unless those of
the engine that is replayed are given too: constants, which leave the router none.
A replayed row is K distinct ids, or -1 throughout: that token routes live.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from .errors import DataError
from .router import Router
from .softmax import softmax

Source = TypeVar("Source")
FEW = 4  # experts a token, up to which comparing all pairs is faster than sorting


@dataclass(frozen=True, kw_only=True)
class Routing:
    """One layer's decision: `ids` int64 `[..., K]` in the router's own order, `live` `[..., K]`, what it would have
    chosen without replay, `gates` `[..., K]`, `selection` `[..., E]`, the scores that the choice was made by, -inf for
    experts of closed groups, and `frozen` `[..., K]`, whether a gate is a constant that was given; None: none is."""

    ids: Tensor
    live: Tensor
    gates: Tensor
    selection: Tensor
    frozen: Tensor | None = None

    @property
    def margin(self) -> Tensor:
        """How far the live choice is from flipping, `[...]`; see `margin`."""
        last = self.selection.gather(-1, self.live[..., -1:])[..., 0]
        return last - self.selection.scatter(-1, self.live, -torch.inf).amax(-1)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Experts to use in place of a router's choice, and by what rule; `replayed` applies it.

    Args:
        ids: integer `[..., K]`, or `[..., M, K]` for all layers; -1 throughout a row that routes live.
        gates: gate weights of those experts, as `ids`, taken as constants; NaN where they are made live, None where all
            are.
        margin: τ, broadcastable to the rows `[...]`: a row whose live choice has a margin of τ or more routes live;
            None replays every row.
        condition: c in [0, 1], as `margin`: an expert stays if its live score is at least c times that of the weakest
            live one, and gives way to the best live one else; 0, or None, keeps all, 1 routes live.
    """

    ids: Tensor
    gates: Tensor | None = None
    margin: Tensor | None = None
    condition: Tensor | None = None

    @property
    def ruled(self) -> bool:
        """Whether a row that is given may be used in part, or not at all."""
        return self.margin is not None or self.condition is not None

    def each(self, change: Callable[[Tensor], Tensor]) -> Replay:
        """The same rule with ids and gates changed alike."""
        return replace(self, ids=change(self.ids), gates=None if self.gates is None else change(self.gates))

    def layers(self) -> list[Replay]:
        """Those of each layer, of `ids` `[..., M, K]`."""
        return [self.each(lambda x, number=number: x[..., number, :]) for number in range(self.ids.shape[-2])]  # type: ignore[misc]


def route(logits: Tensor, router: Router, bias: Tensor | None = None, replay: Replay | None = None) -> Routing:
    """Choose experts and form their gates.

    Args:
        logits: `[..., E]` router logits.
        router: the kind and its sizes.
        bias: `[E]`-broadcastable selection bias of the sigmoid kinds; it never enters a gate.
        replay: of one layer.

    Returns:
        The routing. Gradients reach `logits` through the gates only.
    """
    scores = score(logits, router)
    selection = restrict((scores if bias is None else scores + bias).detach(), router)
    ids = live = selection.topk(router.top_k, dim=-1).indices
    if replay is None:
        return Routing(ids=ids, live=live, gates=gate_weights(logits, scores, ids, router), selection=selection)
    ids, given = replayed(replay, live, selection, softmax(selection) if router.kind == "topk_softmax" else selection)
    gates = gate_weights(logits, scores, ids, router)
    if replay.gates is None:
        return Routing(ids=ids, live=live, gates=gates, selection=selection)
    frozen = given[..., None] & ~replay.gates.isnan()
    gates = torch.where(frozen, replay.gates.to(gates), gates)
    return Routing(ids=ids, live=live, gates=gates, selection=selection, frozen=frozen)


def replay_of(mode: str, old: Source, mu: Source) -> Source | None:
    """Of what two engines routed, what a replay mode gives to π: nothing, that of π_old (R2) or that of μ_old (R3)."""
    return {"disabled": None, "R2": old, "R3": mu}[mode]


def replayed(replay: Replay, live: Tensor, selection: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    """The experts that are used, `[..., K]`: those given, by the rule of their replay, and the live ones elsewhere; and
    in which rows those given were looked at, bool `[...]`.

    Args:
        replay: of one layer.
        live: int64 `[..., K]`, the live choice, best first.
        selection: `[..., E]`, the scores that it was made by.
        strength: `[..., E]`, the same as numbers of which a share means something: probabilities where those are
            logits.
    """
    given = (replay.ids >= 0).all(-1)
    if replay.margin is not None:
        given = given & (margin(selection, live.shape[-1]) < replay.margin)
    ids = torch.where(given[..., None], replay.ids.to(live.dtype), live)
    return ids if replay.condition is None else conditional(ids, live, strength, replay.condition), given


def conditional(ids: Tensor, live: Tensor, strength: Tensor, share: Tensor) -> Tensor:
    """The experts of `ids` whose score is at least `share` times that of the weakest live one; the best live ones in
    place of the others.

        stays_k = [s(ids_k) ≥ c · min_{e live} s(e)],   c = share

    Where the weakest live score is not positive, which a selection bias can bring about, it is the least that stays. A
    row of which all stay is as it was given, in its order.

    Args:
        ids: int64 `[..., K]`, distinct in a row.
        live: int64 `[..., K]`, best first.
        strength: `[..., E]` scores, -inf for experts of closed groups.
        share: c, broadcastable to `[...]`; 0 keeps all.
    """
    own = strength.gather(-1, ids)
    weakest = strength.gather(-1, live[..., -1:])
    share = share[..., None]
    least = torch.where(weakest > 0, share * weakest, weakest)
    stays = (own >= least) | (share <= 0)
    chosen = strength.scatter(-1, ids, torch.where(stays, torch.inf, own)).topk(ids.shape[-1], dim=-1).indices
    return torch.where(stays.all(-1, keepdim=True), ids, chosen)


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


def replay_rows(given: Tensor, used: Tensor, live: Tensor, run: Tensor) -> dict[str, Tensor]:
    """Rows of each MoE layer by what replay did to them.

        replayed   the experts given were used
        replaced   experts were given, and by the rule of the replay others were used, all or some
        live       none were given
        changed    the set that was used is not the live one

    Args:
        given: `[..., N, M, K]` ids given in place of the router's choice, -1 throughout where none were.
        used: `[..., N, M, K]` ids that took its place, -1 throughout where none did.
        live: `[..., N, M, K]` what the routers would have chosen in the same forward.
        run: `[..., N]`, True on the rows that count, or how much each counts (its probability).

    Returns:
        `[..., M]` float64 each: whole numbers of rows, or their expectations.
    """
    count = run.double()[..., None]
    there, took = (given >= 0).all(-1), (used >= 0).all(-1)
    other = flips(given, used)
    hits = {
        "replayed": there & took & ~other,
        "replaced": there & took & other,
        "live": ~there | ~took,
        "changed": there & took & flips(used, live),
    }
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
