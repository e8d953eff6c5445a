"""The exact twin of the receipts of Routing Replay: the rows that an engine runs, each as likely as μ_old makes it.

A context is a prefix at which a token is sampled, so the tokens that lead to it are run whenever it is reached. They
are its rows; the last token of a response leads nowhere.

Shapes: M members, N rows, L MoE layers, K experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.quantities import Moments, means
from firstorder.core.routing import replay_rows
from firstorder.core.training import replay

from .edges import Routes
from .scene import Mode, Scene
from .tree import Tree


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a tree: `ids` `[M, N, L, K]`, and `before`, of the token before each, -1 where there is none."""

    ids: Tensor
    before: Tensor


def rows(scene: Scene, mode: Mode) -> dict[str, float | list[float]]:
    """The receipts of a measurement, means over members: each over all layers, and `NAME_per_layer`."""
    shares = {name: float(value.mean()) for name, value in means(moments(scene, mode)).items()}
    layers = range(scene.mu_old.margin.shape[-1])
    receipts: dict[str, float | list[float]] = {}
    for name in replay.QUANTITIES:
        key = name.removeprefix(replay.PREFIX)
        receipts[key] = shares[name]
        receipts[f"{key}_per_layer"] = [shares[f"{name}{replay.LAYER}{i}"] for i in layers]
    return receipts


def moments(scene: Scene, mode: Mode) -> Moments:
    """Expectations under μ_old, for one response, of the rows that training counts; see `core.training.replay`."""
    weight = _weights(scene)
    sent, live = (_rows(routes, scene.tree) for routes in (scene.mu_old.routes, scene.target[mode].live))
    used = _rows(scene.target[mode].routes, scene.tree).ids
    replayed = torch.full_like(used, -1) if mode == "disabled" else used
    counts = replay_rows(replayed, live.ids, weight)
    return replay.replayed(counts, scene.tree.task.layout.length) | replay.arrivals(sent.ids, sent.before, weight)


def _weights(scene: Scene) -> Tensor:
    """How likely each row is run, `[M, N]`."""
    tree = scene.tree
    levels = torch.split(scene.reached, list(tree.levels), dim=1)
    each = [level[:, None].expand(-1, len(lead), -1) for level, lead in zip(levels, tree.leads, strict=True)]
    return torch.cat([one.flatten(1) for one in each], dim=1)


def _rows(routes: Routes, tree: Tree) -> Rows:
    """The rows of every lead, level by level, and in a level place by place."""
    ids, before = [], []
    last: Tensor | None = None
    for lead, context in zip(routes.leads, torch.split(routes.contexts, list(tree.levels), dim=1), strict=True):
        whole = torch.cat([lead, context[:, None]], dim=1)
        first = (
            torch.full_like(whole[:, :1], -1) if last is None else last.repeat_interleave(tree.vocab - 1, 1)[:, None]
        )
        ids.append(whole.flatten(1, 2))
        before.append(torch.cat([first, whole[:, :-1]], dim=1).flatten(1, 2))
        last = context
    return Rows(ids=torch.cat(ids, dim=1), before=torch.cat(before, dim=1))
