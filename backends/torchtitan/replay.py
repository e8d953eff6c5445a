"""Routing record and replay in torchtitan's router.

A replayed row replaces the router's choice of experts: the gates are gathered from the live scores and renormalised as
the router does it, so the router keeps its gradient (arXiv 2510.11370, arXiv 2512.01374 sec. 3.3), unless gates are
given too. Which rows and experts are used is settled by `core.routing`, as in the simulator.

Under tensor parallelism a router sees its rank's share of the positions: it replays that share of the ids, which every
rank is given whole, and what it records is gathered.

Shapes: R packed rows, P positions of a row, M MoE layers, E experts, K experts a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from firstorder.core.errors import DataError
from firstorder.core.routing import Replay, margin, replay_rows, replayed

from .adapter import TokenChoiceTopKRouter, derive


class ReplayRouter(TokenChoiceTopKRouter):
    """torchtitan's router with two attributes: what to replay, and whether to keep what it chose.

    Attributes:
        replay: experts `[R, P, K]` to use, and by what rule; None for all live.
        live, used: int16 `[R, P, K]`, what it would have chosen in its last forward and what it used; None unless that
            forward replayed.
        recording: keep the ids used and the margin of the live choice in `chosen` and `margin`; with `gated`, the gate
            weights that were used in `gates` too.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(TokenChoiceTopKRouter.Config):
        """As of `TokenChoiceTopKRouter`."""

    replay: Replay | None = None
    live: Tensor | None = None
    used: Tensor | None = None
    recording = False
    gated = False
    chosen: Tensor | None = None
    margin: Tensor | None = None
    gates: Tensor | None = None

    def forward(self, x_BLD: Tensor, expert_bias_E: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Gates `[R, P, K]`, ids `[R, P, K]` and all scores `[R, P, E]`."""
        gates, ids, scores = super().forward(x_BLD, expert_bias_E)
        if self.replay is not None:
            gates, ids = self._replayed(self.replay, ids, scores, expert_bias_E)
        if self.recording:
            selection = self._selection(_whole(scores.detach()), expert_bias_E)
            self.chosen, self.margin = _whole(ids.detach()), margin(selection, self.top_k)
            self.gates = _whole(gates.detach()) if self.gated else None
        return gates, ids, scores

    def _replayed(self, replay: Replay, live: Tensor, scores: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gates and ids under replay, as `forward` has them; every rank those of its own positions."""
        given = replay.each(lambda x: _own(_sharded(x, live)))
        selection = _own(self._selection(scores.detach(), bias)) if replay.ruled else _own(scores.detach())
        used, taken = replayed(given, _own(live), selection, selection)
        ids = _as(used, live)
        self.live, self.used = live.detach().to(torch.int16), ids.detach().to(torch.int16)  # receipts of this forward
        gates = scores.gather(-1, ids)
        if self.route_norm:  # the stock order of operations, so that replaying one's own ids changes no bit
            gates = gates / (gates.sum(-1, keepdim=True) + 1e-20)
        gates = gates * self.route_scale
        if given.gates is None:
            return gates, ids
        frozen = taken[..., None] & ~given.gates.isnan()
        constant = torch.where(frozen, given.gates, 0.0).to(gates.dtype)
        return gates * _as((~frozen).to(gates.dtype), live) + _as(constant, live), ids

    def _selection(self, scores: Tensor, bias: Tensor | None) -> Tensor:
        """The scores that the live choice is made by, -inf for experts of closed groups."""
        biased = scores if bias is None else scores + bias
        closed: Tensor = biased if self.num_expert_groups is None else self._get_node_limited_routing_scores(biased)
        return closed


def _sharded(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that every rank holds whole, laid out as `like` is; nothing is sent."""
    if not isinstance(like, DTensor):
        return whole
    everywhere = [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(whole, like.device_mesh, everywhere).redistribute(placements=like.placements)


def _own(x: Tensor) -> Tensor:
    """This rank's share of `x`."""
    return x.to_local() if isinstance(x, DTensor) else x


def _as(own: Tensor, like: Tensor) -> Tensor:
    """This rank's share, laid out as `like` is."""
    return DTensor.from_local(own, like.device_mesh, like.placements) if isinstance(like, DTensor) else own


def _whole(x: Tensor) -> Tensor:
    """`x`, gathered if it is sharded."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def install(config: Any) -> None:
    """Swap the routers of a model config, layer by layer, before the model is built."""
    for layer in config.layers:
        if layer.moe is not None:
            layer.moe.router = derive(layer.moe.router, ReplayRouter.Config)


def routers(model: Any) -> list[ReplayRouter]:
    """The model's routers in the order of its layers."""
    return [module for module in model.modules() if isinstance(module, ReplayRouter)]


@contextmanager
def replaying(model: Any, replay: Replay | None) -> Iterator[None]:
    """Replay experts `[R, P, M, K]` in every forward inside.

    It must enclose the backward pass too: activation checkpointing runs the forward again there.
    """
    layers = routers(model)
    given = [None] * len(layers) if replay is None else replay.layers()
    for router, of_layer in zip(layers, given, strict=False):
        router.replay, router.live, router.used = of_layer, None, None
    try:
        yield
    finally:
        for router in layers:
            router.replay = router.live = router.used = None


def witnessed(model: Any, replay: Replay | None, run: Tensor) -> dict[str, Tensor]:
    """What the routers did with a replay in the forward inside `replaying`, by their own account: see `replay_rows`.

    A layer whose router was replaced, or returned before its replay, has nothing to say, and has replayed nothing.

    Args:
        model: the model.
        replay: as given; None for all live.
        run: bool `[R, P]`, the rows that count.
    """
    layers = routers(model)
    if replay is None:
        ids = torch.full((*run.shape, len(layers), 1), -1, dtype=torch.int16, device=run.device)
    else:
        ids = replay.ids.to(torch.int16)
    live, used = torch.full_like(ids, -1), torch.full_like(ids, -1)
    for number, router in enumerate(layers[: ids.shape[2]]):
        if router.live is not None and router.used is not None:
            wire = torch.stack([router.live, router.used]).to(torch.int32)  # gloo gathers no int16
            live[:, :, number], used[:, :, number] = _whole(wire)
    return replay_rows(ids.flatten(0, 1), used.flatten(0, 1), live.flatten(0, 1), run.flatten())


@dataclass(kw_only=True)
class Recorded:
    """What the routers did in one forward: `ids` `[R, P, M, K]`, `margin` `[R, P, M]` of their live choices, and, if
    asked for, `gates` `[R, P, M, K]`, the weights that the experts were given."""

    ids: Tensor | None = None
    margin: Tensor | None = None
    gates: Tensor | None = None


@contextmanager
def recording(model: Any, *, gates: bool = False) -> Iterator[Recorded]:
    """Record the one forward inside, with `gates` the gate weights too; the record is filled when the block ends.

    Raises:
        DataError: a router kept no record.
    """
    layers, record = routers(model), Recorded()
    for router in layers:
        router.recording, router.gated = True, gates
    try:
        yield record
        silent = [str(number) for number, router in enumerate(layers) if router.chosen is None]
        if silent or not layers:
            raise DataError(
                f"the routers of MoE layers {', '.join(silent) or '(none was found)'} record no routes: they were "
                "replaced after replay was installed, or return before it; use torchtitan's own routers"
            )
        record.ids = torch.stack([router.chosen for router in layers if router.chosen is not None], dim=2)
        record.margin = torch.stack([router.margin for router in layers if router.margin is not None], dim=2)
        if gates:
            record.gates = torch.stack([router.gates for router in layers if router.gates is not None], dim=2)
    finally:
        for router in layers:
            router.recording = router.gated = False
            router.chosen = router.margin = router.gates = None
