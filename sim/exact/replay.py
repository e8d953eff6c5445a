"""The exact twin of the receipts of Routing Replay: the rows that an engine runs, each as likely as μ_old makes it.

A context is a prefix at which a token is sampled, so the tokens that lead to it are run whenever it is reached. They
are its rows; the last token of a response leads nowhere.

Shapes: M members, N rows, L MoE layers, K experts a token.
"""

from __future__ import annotations

import torch

from firstorder.core.quantities import Moments, means
from firstorder.core.routing import replay_rows
from firstorder.core.training import replay

from .scene import Mode, Scene


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
    kernel, target = scene.mu_old.logp.exp(), scene.target[mode]
    sent, live, used = (scene.world.run_rows(routes, kernel) for routes in (scene.sent, target.live, target.routes))
    given = scene.replay(mode)
    ids = torch.full_like(used.ids, -1) if given is None else scene.world.run_rows(given.routes, kernel).ids
    counts = replay_rows(ids, used.ids, live.ids, sent.weight)
    return replay.replayed(counts, scene.world.task.layout.length) | replay.arrivals(sent.ids, sent.before, sent.weight)
