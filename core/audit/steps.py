"""A dump's steps as the lines of a run's log: what a training run would have logged of the same batches.

The names, and the sums they are made of, are those of `core.training.loop`, so that alarms and figures read a dump as
they read a run. What only an update knows (clips, gradients, π_θ) is not in a dump and not in the lines.

Shapes: S steps, B responses, D quantities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.quantities import Moments, Quantity, means
from firstorder.core.runs.alarm import quotient, read
from firstorder.core.runs.alarm_table import BEGINNING, Of, window_steps
from firstorder.core.runs.logs import Line
from firstorder.core.training import backend, diagnostics, loop, replay, strata

from .seen import Seen
from .table import Cell, Column, Table

MEAN, LINE = 4, 12  # updates whose mean is read, and through which a slope is laid, as `study warnings` reads a run


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The sums of every step.

    Args:
        steps: int64 `[S]`, ascending.
        names: of the moments.
        moments: `[S, D, 2]` float64, numerators and denominators.
        rewards: `[S, 3]`, how many, their mean and Σ (R - mean)².
    """

    steps: Tensor
    names: tuple[str, ...]
    moments: Tensor
    rewards: Tensor


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A way to read a quantity along the steps, as `Alarm` has it."""

    quantity: str
    per: str | None = None
    of: Of = "level"

    @property
    def window(self) -> int:
        """Updates."""
        return LINE if self.of == "slope" else MEAN

    @property
    def name(self) -> str:
        """For people."""
        what = self.quantity if self.per is None else f"{self.quantity} / {self.per}"
        return what if self.of == "level" else f"{self.of} of {what}"


SIGNALS = (
    Signal(quantity="kl"),
    Signal(quantity="k3_kl"),
    Signal(quantity="k3_kl", of="change"),
    Signal(quantity="ratio_tail_2"),
    Signal(quantity="seq_log_ratio_std", of="change"),
    Signal(quantity="seq_eff_sample_size"),
    Signal(quantity="kl_failing", per="kl_succeeding"),
    Signal(quantity="kl_flipped", of="change"),
    Signal(quantity="route/flip_rate", of="change"),
    Signal(quantity="update/entropy", of="change"),
    Signal(quantity="update/entropy", of="slope"),
    Signal(quantity="response_length", of="change"),
    Signal(quantity="reward_std"),
    Signal(quantity="reward", of="change"),
)
"""What may warn of a collapse and a dump can hold."""


def measured(seen: Seen, moments: Moments) -> Steps:
    """The sums of a chunk.

    Args:
        seen: the chunk.
        moments: of each of its responses, `[B]`.
    """
    steps, place = torch.unique(seen.chunk.steps, return_inverse=True)
    pairs = [torch.stack([above.double(), below.double()], -1) for above, below in moments.values()]
    each = torch.stack(pairs, 1) if pairs else torch.zeros(len(place), 0, 2, dtype=torch.float64)
    sums = each.new_zeros(len(steps), *each.shape[1:]).index_add(0, place, each)
    return Steps(steps=steps, names=tuple(moments), moments=sums, rewards=_spread(seen, place, len(steps)))


def merged(a: Steps, b: Steps) -> Steps:
    """The steps of two chunks together."""
    names = tuple(dict.fromkeys((*a.names, *b.names)))
    steps, place = torch.unique(torch.cat([a.steps, b.steps]), return_inverse=True)
    moments = torch.cat([_widened(a, names), _widened(b, names)])
    one, two = (
        each.rewards.new_zeros(len(steps), 3).index_copy(0, at, each.rewards)
        for each, at in ((a, place[: len(a.steps)]), (b, place[len(a.steps) :]))
    )
    return Steps(
        steps=steps,
        names=names,
        moments=moments.new_zeros(len(steps), *moments.shape[1:]).index_add(0, place, moments),
        rewards=_joined(one, two),
    )


def lines(of: Steps) -> list[Line]:
    """A line a step: `step` and every quantity that it has, None where it has no value."""
    sums: Moments = {name: (of.moments[:, i, 0], of.moments[:, i, 1]) for i, name in enumerate(of.names)}
    found = _finalise(sums) | _rewards(of.rewards)
    values = {name: [x if math.isfinite(x) else None for x in each.tolist()] for name, each in found.items()}
    return [
        {"step": step} | {name: each[i] for name, each in values.items()} for i, step in enumerate(of.steps.tolist())
    ]


def quantities(layers: int = 0) -> dict[str, Quantity]:
    """What every name of a line means."""
    shared = diagnostics.QUANTITIES | strata.QUANTITIES | loop.QUANTITIES | backend.QUANTITIES
    return shared | backend.layer_flips(layers) | replay.quantities(layers)


def signals(run: Sequence[Line], minibatches: int = 1) -> Table:
    """What may warn of a collapse, along the steps: means, changes and slopes of the last updates; no rows where there
    are fewer.

    Args:
        run: the lines, in order.
        minibatches: updates a step, N.
    """
    first = run[: -(-BEGINNING // minibatches)]
    read_ = [{each: _read(run, end, first, each, minibatches) for each in SIGNALS} for end in range(1, len(run) + 1)]
    known = [each for each in SIGNALS if any(row[each] is not None for row in read_)]
    rows: list[dict[str, Cell]] = [
        {"step": line["step"], **{each.name: row[each] for each in known}} for line, row in zip(run, read_, strict=True)
    ]
    named = quantities()
    heads = [
        Column(key=each.name, title=each.name, unit=_unit(each, named), formula=named[each.quantity].formula)
        for each in known
    ]
    note = (
        f"Means of the last {MEAN} updates, slopes through the last {LINE}; a change is over the mean of the first "
        f"{BEGINNING}, a slope per update over the same."
    )
    return Table(
        name="signals",
        title="What may warn of a collapse",
        columns=(Column(key="step", title="step"), *heads),
        rows=tuple(rows) if known else (),
        note=note,
    )


def _read(run: Sequence[Line], end: int, first: Sequence[Line], signal: Signal, minibatches: int) -> float | None:
    """A signal after so many lines, as `alarm.Monitor` reads it."""
    steps = window_steps(signal, minibatches)
    if end < steps or (signal.of == "change" and end < steps + len(first)):
        return None
    window, start = quotient(run[end - steps : end], signal), quotient(first, signal)
    if window is None:
        return None
    start = torch.full_like(window[:, :1], torch.nan) if start is None else start
    value = float(read(window, start, signal, minibatches)[0])
    return value if math.isfinite(value) else None


def _unit(signal: Signal, named: Mapping[str, Quantity]) -> str:
    if signal.of == "slope":
        return "1/update"
    return "1" if signal.of == "change" or signal.per is not None else named[signal.quantity].unit


def _finalise(sums: Moments) -> dict[str, Tensor]:
    """As the loop does for its own sums."""
    found = diagnostics.finalise(sums) if "d" in sums else {}
    logged = ("response_length", "route/flip_rate", "route/tokens_flipped", "update/entropy", replay.PREFIX)
    return found | strata.finalise(sums) | means({name: x for name, x in sums.items() if name.startswith(logged)})


def _spread(seen: Seen, place: Tensor, steps: int) -> Tensor:
    """How many rewards each step has, their mean and Σ (R - mean)², `[S, 3]`."""
    none = torch.zeros(steps, dtype=torch.float64)
    if seen.chunk.rewards is None:
        return none[:, None].expand(-1, 3)
    rewards, place = seen.chunk.rewards[seen.rewarded].double(), place[seen.rewarded]
    count = none.index_add(0, place, torch.ones_like(rewards))
    mean = none.index_add(0, place, rewards) / count.clamp(min=1)
    return torch.stack([count, mean, none.index_add(0, place, (rewards - mean[place]).square())], -1)


def _joined(a: Tensor, b: Tensor) -> Tensor:
    """Two of `_spread` together, centred as `clustered.merged` does it."""
    (n, x, s), (m, y, t) = a.unbind(-1), b.unbind(-1)
    count = n + m
    weight = torch.where(count > 0, m / count, 0.0)
    return torch.stack([count, x + (y - x) * weight, s + t + (y - x).square() * n * weight], -1)


def _rewards(rewards: Tensor) -> dict[str, Tensor]:
    count, mean, squares = rewards.unbind(-1)
    if not bool(count.any()):
        return {}
    return {"reward": torch.where(count > 0, mean, torch.nan), "reward_std": (squares / count).sqrt()}


def _widened(of: Steps, names: tuple[str, ...]) -> Tensor:
    if of.names == names:
        return of.moments
    at = torch.tensor([names.index(name) for name in of.names], dtype=torch.int64)
    return of.moments.new_zeros(len(of.steps), len(names), 2).index_copy(1, at, of.moments)
