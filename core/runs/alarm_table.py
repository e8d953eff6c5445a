"""The table of alarms: what to read of a run's log, beyond which threshold it warns, and how often that was right.

Thresholds follow the length of the responses, the updates a rollout and the entropy of the policy to begin with:

    s = constant + length · log T + minibatches · log N + entropy · log H_0,     threshold = s, or exp s on a log scale

They are fitted on runs in which some policies collapse and others do not, so that 5 % of the runs that do not would
warn. What a table was fitted on, its regime, is part of it.
"""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from firstorder.core.errors import ConfigError

SCHEMA = "firstorder.alarms/1"
BEGINNING = 4  # updates whose mean is what a run began with
LEAST = 3  # points of a line with a slope
Of = Literal["level", "size", "change", "slope"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Reads(Protocol):
    """What is read of a log; arguments as of `Alarm`."""

    @property
    def quantity(self) -> str: ...  # noqa: D102
    @property
    def per(self) -> str | None: ...  # noqa: D102
    @property
    def of(self) -> Of: ...  # noqa: D102
    @property
    def window(self) -> int: ...  # noqa: D102


def window_steps(reads: Reads, minibatches: int) -> int:
    """Global steps of a window of updates; a slope takes three."""
    return max(LEAST if reads.of == "slope" else 1, -(-reads.window // minibatches))


class Interval(_Part):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.0%} [{self.low:.0%}, {self.high:.0%}]"


class Quartiles(_Part):
    """The median and the quartiles beside it, in updates."""

    low: float
    median: float
    high: float


class HeldOut(_Part):
    """What an alarm did on conditions that its threshold was not fitted on.

    Args:
        auc: P(a run that collapses later reads worse than one that does not, at the same update).
        within: the same over pairs of runs of one condition, None where no condition has both kinds.
        hits: share of the collapses before which it warned.
        false_alarms: share of the runs without a collapse in which it warned.
        precision: share of the runs with a warning in which a collapse followed.
        lead: updates from the warning to the collapse, where it warned.
        collapsed: runs with a collapse.
        stable: runs without.
    """

    auc: Interval
    within: Interval | None = None
    hits: Interval
    false_alarms: Interval
    precision: Interval
    lead: Quartiles
    collapsed: int = Field(ge=1)
    stable: int = Field(ge=1)


class Threshold(_Part):
    """The coefficients of s."""

    constant: float
    length: float = 0.0
    minibatches: float = 0.0
    entropy: float = 0.0

    def at(self, length: Tensor, minibatches: int, entropy: Tensor) -> Tensor:
        """s of every member, NaN where T or H_0 has no logarithm.

        Args:
            length: T `[M]` tokens.
            minibatches: N.
            entropy: H_0 `[M]` nats/token.
        """
        log_t, log_h = (torch.where(x > 0, x, torch.nan).log() for x in (length, entropy))
        terms = ((self.length, log_t), (self.entropy, log_h))
        return (
            self.constant
            + self.minibatches * math.log(minibatches)
            + sum((c * x for c, x in terms if c), start=torch.zeros_like(length))
        )


class Alarm(_Part):
    """One alarm.

    Args:
        name: for people.
        quantity: as a log names it.
        per: another quantity that it is divided by.
        of: what is read of it over the last `window` updates: `level`, the mean; `size`, the absolute value of the
            mean; `change`, the mean over that of the beginning; `slope`, that of the least-squares line in an update,
            over the mean of the beginning.
        window: updates.
        side: where danger is.
        scale: whether threshold and reading are compared in logarithms; `linear` where a reading has a sign.
        threshold: beyond which it warns.
        cause: what is behind it.
        remedy: what to change.
        held_out: how often it was right.
    """

    name: str
    quantity: str
    per: str | None = None
    of: Of = "level"
    window: int = Field(ge=1)
    side: Literal["high", "low"]
    scale: Literal["log", "linear"]
    threshold: Threshold
    cause: str
    remedy: str
    held_out: HeldOut

    def steps(self, minibatches: int) -> int:
        """Global steps of its window."""
        return window_steps(self, minibatches)

    def limit(self, length: Tensor, minibatches: int, entropy: Tensor) -> Tensor:
        """The threshold of every member, in the units of the reading; arguments as of `Threshold.at`."""
        s = self.threshold.at(length, minibatches, entropy)
        return s.exp() if self.scale == "log" else s

    def beyond(self, reading: Tensor, limit: Tensor) -> Tensor:
        """Whether readings are on the side of danger; not where one is NaN."""
        return reading > limit if self.side == "high" else reading < limit


class Range(_Part):
    """From low to high, both included."""

    low: float
    high: float


class Regime(_Part):
    """What the runs of a fit had in common: mean response length, N, entropy and KL (k3) as they began."""

    response_length: Range
    minibatches: Range
    entropy: Range
    k3_kl: Range


class Fit(_Part):
    """What a table was made from.

    Args:
        version: of the package.
        seeds: the first and the last of the policies.
        updates: of a run.
        conditions: in words, one each.
        rule: by which a quantity became an alarm.
        standing: what to think of it.
    """

    version: str
    seeds: tuple[int, int]
    updates: int
    conditions: tuple[str, ...]
    rule: str
    standing: str


class Table(_Part):
    """Alarms, the regime they hold in, what they were fitted on, and what they did together, a warning of any one of
    them."""

    schema_: Literal["firstorder.alarms/1"] = Field(alias="schema")
    false_alarms: float = Field(gt=0, lt=1)
    regime: Regime
    fit: Fit
    together: HeldOut | None = None
    alarms: tuple[Alarm, ...]


def shipped() -> Table:
    """The table of the package."""
    file = resources.files("firstorder.core.runs") / "alarms.json"
    return parse(file.read_text(encoding="utf-8"), "alarms.json of the package")


def load(path: Path) -> Table:
    """A table from a file.

    Raises:
        ConfigError: it cannot be read, or is no such table, naming what is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"table of alarms {path} cannot be read: {reason}; give another file") from None
    return parse(text, str(path))


def parse(text: str, place: str) -> Table:
    """A table from its JSON; `place` names it in errors, which are as of `load`."""
    try:
        table = Table.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(
            f"{place} is no table of alarms ({SCHEMA}): {where}: {first['msg'].lower()}; "
            "make it anew with `firstorder study warnings`"
        ) from None
    names = [alarm.name for alarm in table.alarms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{place} names the alarm {twice[0]!r} twice; give each a name of its own")
    return table
