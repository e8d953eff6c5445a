"""Receipts of Routing Replay: the rows that each MoE layer replayed, what that changed, and the routes that arrived.

A *row* is the routing of one token in one layer. A response of L tokens has L - 1 of them: no engine needs that of its
last token. That replay is on and nothing is replayed is the fault that is met most, and it stops the run here.

Shapes: `...` any leading axes (an ensemble), B responses, L positions, M MoE layers, K experts a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from firstorder.core.errors import ReplayError
from firstorder.core.method.recipe import RouterReplay
from firstorder.core.quantities import Moments, Quantity
from firstorder.core.routing import flips, repeats

from .arms import Arm
from .backend import Scored
from .batch import RolloutBatch

PREFIX = "replay/"
LAYER = "_layer_"
FEWEST = 8  # rows at which engines differ; below it, rounding between two forwards may undo all of them
NAMED = 8  # layers that a message names

_MEANING = {
    "rows_replayed": "rows whose experts were replayed in the step's updates, all as they were given",
    "rows_replaced": "rows whose given experts gave way, some or all, to the router's own by router_replay.margin or "
    "router_replay.condition",
    "rows_live": "rows that were given no experts, so that the router chose by itself in the step's updates",
    "rows_changed": "rows that were given experts and used another set than the router chose by itself in the same "
    "forward",
    "rows_padded": "positions of the batch without a row: padding, and the last token of every response",
    "routes_arrived": "rows that came from the rollout engine",
    "routes_missing": "rows that the rollout engine did not send: -1 on a token that it ran",
    "routes_repeated": "rows that are, id by id, those of the token before, or the same in all layers, as fills are",
}
_UNITS = {"rows_padded": "share of (position, layer)"}
QUANTITIES: dict[str, Quantity] = {
    PREFIX + name: Quantity(formula=meaning, unit=_UNITS.get(name, "share of (token, layer)"), source="firstorder")
    for name, meaning in _MEANING.items()
}


def rules(replays: Sequence[RouterReplay]) -> dict[str, Tensor | None]:
    """The rules of members as `core.routing.Replay` takes them, `[M, 1]`; None where no member has any."""

    def of(values: list[float], least: float) -> Tensor | None:
        return torch.tensor(values, dtype=torch.float64)[:, None] if any(x != least for x in values) else None

    return {
        "margin": of([torch.inf if each.margin is None else each.margin for each in replays], torch.inf),
        "condition": of([each.condition for each in replays], 0.0),
    }


def quantities(layers: int) -> dict[str, Quantity]:
    """What is reported, over all layers and for each."""
    return QUANTITIES | {
        f"{name}{LAYER}{i}": replace(
            known,
            formula=f"{known.formula}, in MoE layer {i}",
            unit=known.unit.replace("(token, layer)", "tokens").replace("(position, layer)", "positions"),
        )
        for name, known in QUANTITIES.items()
        for i in range(layers)
    }


def run_rows(lengths: Tensor, positions: int) -> Tensor:
    """The positions that hold a row, bool `[..., B, L]`: those before a response's last token."""
    return torch.arange(positions, device=lengths.device) < (lengths - 1)[..., None]


def replayed(counts: Mapping[str, Tensor], positions: float) -> Moments:
    """What a forward under replay did, as (rows, rows there are) `[...]`, over all layers and for each.

    Args:
        counts: `[..., M]` each, of `routing.replay_rows`.
        positions: of the batch, padding included.
    """
    run = counts["replayed"] + counts["replaced"] + counts["live"]
    whole = torch.full_like(run, positions)
    shares = {f"rows_{name}": (counts[name], run) for name in ("replayed", "replaced", "live", "changed")}
    return _by_layer(shares | {"rows_padded": (whole - run, whole)})


def arrivals(routes: Tensor, before: Tensor, run: Tensor) -> Moments:
    """How many routes a rollout engine sent, and how many look like a fill, as `replayed`.

    Args:
        routes: `[..., N, M, K]` rows, -1 where missing.
        before: `[..., N, M, K]` those of the token before each, -1 where there is none.
        run: `[..., N]`, the rows that count, or how much each counts.
    """
    there, count = (routes >= 0).all(-1), run.double()[..., None]
    hits = {"arrived": there, "missing": ~there, "repeated": repeats(routes, before)}
    rows = {name: (count * hit).sum(-2) for name, hit in hits.items()}
    return _by_layer({f"routes_{name}": (hit, rows["arrived"] + rows["missing"]) for name, hit in rows.items()})


def arrived(batch: RolloutBatch) -> Moments:
    """`arrivals` of a batch; nothing for a dense model."""
    if batch.routes is None:
        return {}
    before = torch.cat([torch.full_like(batch.routes[..., :1, :, :], -1), batch.routes[..., :-1, :, :]], dim=-3)
    run = run_rows(batch.lengths, batch.tokens.shape[-1])
    return arrivals(batch.routes.flatten(-4, -3), before.flatten(-4, -3), run.flatten(-2))


def differing(batch: RolloutBatch, live: Tensor) -> Tensor:
    """At how many rows of each response π_old, routing live, chooses other experts than arrived; int64 `[..., B]`."""
    assert batch.routes is not None
    run = run_rows(batch.lengths, batch.tokens.shape[-1])[..., None]
    apart = flips(batch.routes, live) & (batch.routes >= 0).all(-1) & run
    return apart.sum((-2, -1))


def check_given(scored: Scored, arms: Sequence[Arm]) -> None:
    """Refuse to update where replay is on and a layer is given nothing to replay.

    Raises:
        ReplayError: with the layers, and where their routes may have been lost.
    """
    given = _given(scored)
    for place, mode in enumerate(_modes(arms)):
        if mode == "disabled" or (given is not None and given[place].all()):
            continue
        where = "any layer" if given is None else _layers(given[place] == 0)
        lost = {
            "R2": "the trainer recorded no routes: was its router replaced by another after replay was installed?",
            "R3": "the routes of the rollout engine are all -1 there: does it record them, and are they sent on?",
        }[mode]
        raise ReplayError(f"router_replay.mode = {mode} is on, but no rows were given to replay in {where}; {lost}")


def check_replayed(minibatch: Scored, updated: Moments, arms: Sequence[Arm], *, fresh: bool) -> None:
    """Refuse to go on from an update whose replay did not take place, or changed nothing where the engines differ.

    Args:
        minibatch: what the update was given.
        updated: what it reported.
        arms: the recipes.
        fresh: θ = θ_old, so that a row at which the engines differ must have changed under R3.

    Raises:
        ReplayError: with what was seen and its likely causes.
    """
    given = _given(minibatch)
    if given is None:
        return
    kept, replaced, changed = (
        _of_layers(updated, name, given) for name in ("rows_replayed", "rows_replaced", "rows_changed")
    )
    rules = torch.tensor([each.ruled for each in _replays(arms)])
    took = kept + replaced * rules[:, None]  # without a rule no expert gives way
    apart = torch.zeros(len(given)) if minibatch.differs is None else minibatch.differs.sum(-1).reshape(-1)
    for place, mode in enumerate(_modes(arms)):
        if mode == "disabled":
            continue
        demand = f"router_replay.mode = {mode} is on, and of {int(given[place].sum())} rows given to replay"
        if (took[place] != given[place]).any():
            raise ReplayError(
                f"{demand} {int(took[place].sum())} were replayed, with rows lost in "
                f"{_layers(took[place] != given[place])}; was a router replaced after replay was installed, does a "
                "fused one return before it, or were ids dropped on their way?"
            )
        if mode == "R3" and fresh and not rules[place] and apart[place] >= FEWEST and not changed[place].any():
            raise ReplayError(
                f"{demand} none changed the router's choice, though the engines' routes differ at {int(apart[place])} "
                "of them; were the trainer's own routes replayed in place of the rollout engine's, or was the choice "
                "made again after the replay?"
            )


def _by_layer(shares: Mapping[str, tuple[Tensor, Tensor]]) -> Moments:
    """Of each (rows, total) `[..., M]` those of all layers together, and of each layer."""
    moments: Moments = {}
    for name, (rows, total) in shares.items():
        moments[PREFIX + name] = rows.sum(-1), total.sum(-1)
        moments |= {f"{PREFIX}{name}{LAYER}{i}": (rows[..., i], total[..., i]) for i in range(rows.shape[-1])}
    return moments


def _given(scored: Scored) -> Tensor | None:
    """Rows that each layer is given to replay, `[members or 1, M]`; None without replay."""
    if scored.replay is None:
        return None
    run = run_rows(scored.batch.lengths, scored.batch.tokens.shape[-1]).flatten(-2)
    there = (scored.replay.ids >= 0).all(-1).flatten(-3, -2)
    return (there & run[..., None]).sum(-2).double().reshape(-1, there.shape[-1])


def _of_layers(moments: Moments, name: str, like: Tensor) -> Tensor:
    """The rows of a moment by layer, laid out as `like`; 0 where none was reported."""
    none = torch.zeros(len(like), dtype=like.dtype)
    keys = [f"{PREFIX}{name}{LAYER}{i}" for i in range(like.shape[-1])]
    return torch.stack([moments[key][0].reshape(-1) if key in moments else none for key in keys], dim=-1)


def _replays(arms: Sequence[Arm]) -> list[RouterReplay]:
    """The replay of every member."""
    return [arm.recipe.router_replay for arm in arms for _ in range(arm.members or 1)]


def _modes(arms: Sequence[Arm]) -> list[str]:
    return [each.mode for each in _replays(arms)]


def _layers(hit: Tensor) -> str:
    """Layers for people, from bool `[M]`."""
    numbers = hit.nonzero().flatten().tolist()
    if len(numbers) == len(hit):
        return f"all {len(hit)} MoE layers" if len(hit) > 1 else "the MoE layer"
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"MoE layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:NAMED]))}{more}"
