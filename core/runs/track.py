"""Where else the numbers of a run are shown: sinks, which are fed from what the logs say and can never stop a run.

The logs of the run folder are the source of truth. A sink that fails is named once and left out; since it says which
step it wants next, resuming the run brings it up to date.
"""

from __future__ import annotations

import math
import re
import secrets
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from firstorder.core.quantities import Quantity
from firstorder.core.settings.toml import flat

from .files import write_whole
from .folder import RunFolder
from .logs import Line

Hyper = bool | int | float | str
LAYERS = 8  # layers of which a sink shows each; of more it shows the extremes
EXTREMES: Mapping[str, Callable[[Iterable[float]], float]] = {"min": min, "max": max}


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """What a sink is told about the run that it shows.

    Args:
        id: of the run, the same after every resumption; no other run has it.
        name: of the run, for people.
        folder: a sink's own folder, inside the run folder.
        hyper: the configuration under dotted keys.
        quantities: what the logged names mean.
    """

    id: str
    name: str
    folder: Path
    hyper: Mapping[str, Hyper]
    quantities: Mapping[str, Quantity]


class Sink(Protocol):
    """A place where a run is shown. Steps arrive in order, none twice; any exception means that it cannot go on."""

    @property
    def next(self) -> int:
        """The first step that it does not hold yet, as it was opened."""

    @property
    def place(self) -> str:
        """Where to look: a folder or an address."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the finite values of a step."""

    def close(self) -> None:
        """Show what is still held back."""


Opener = Callable[[Tracked], Sink]


class Tracker:
    """The sinks of a run.

    Args:
        folder: the run folder, at the checkpoint from which the run goes on.
        openers: by the names of the sinks.
        quantities: what the logged names mean.
        warn: what is called with one line when a sink fails.
    """

    def __init__(
        self,
        folder: RunFolder,
        openers: Mapping[str, Opener],
        quantities: Mapping[str, Quantity],
        warn: Callable[[str], None],
    ) -> None:
        self.sinks: dict[str, Sink] = {}
        self._next: dict[str, int] = {}
        self._warn = warn
        for name, opener in openers.items():
            self._guard(name, partial(self._open, folder, name, opener, quantities))
        for line in folder.history() if self.sinks else ():
            self.log(line)

    def log(self, line: Line) -> None:
        """Show a step in every sink that does not hold it yet."""
        step, values = int(line["step"]), summary(line)
        for name, sink in list(self.sinks.items()):
            if step >= self._next[name]:
                self._guard(name, partial(sink.log, step, values))

    def close(self) -> None:
        """Close every sink."""
        for name, sink in list(self.sinks.items()):
            self._guard(name, sink.close)

    def _open(self, folder: RunFolder, name: str, opener: Opener, quantities: Mapping[str, Quantity]) -> None:
        own = folder.path / "tracking" / name
        own.mkdir(parents=True, exist_ok=True)
        sink = opener(
            Tracked(
                id=identity(own.parent / "id"),
                name=folder.path.resolve().name,
                folder=own,
                hyper=hyper(folder.config),
                quantities=bounded_quantities(quantities),
            )
        )
        self.sinks[name], self._next[name] = sink, sink.next

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        """Act; a sink that cannot is named once and left out. The libraries raise whatever they like."""
        try:
            action()
        except Exception as error:
            self.sinks.pop(name, None)
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            self._warn(f"--track {name} stopped: {reason}; the run goes on, and --resume --track {name} fills the gap")


def summary(line: Line) -> dict[str, float]:
    """The values of a step as single numbers: those of the one policy, or the mean and the quartiles over members.

    The quartiles stand under `q25/NAME` and `q75/NAME`. A name without a finite number for every member is left out. Of
    a name with more than `LAYERS` layers the least and the largest stand under `NAME_layer_min` and `NAME_layer_max`.

    Example:
        >>> summary({"step": 3, "kl": 0.5, "reward": [0.0, 1.0, 2.0, 5.0], "ess": None})
        {'kl': 0.5, 'reward': 2.0, 'q25/reward': 0.75, 'q75/reward': 2.75}
    """
    numbers: dict[str, float] = {}
    for name, value in bounded(line).items():
        if name == "step":
            continue
        members = value if isinstance(value, list) else [value]
        if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in members):
            continue
        numbers[name] = statistics.fmean(members)
        if len(members) > 1:
            low, _, high = statistics.quantiles(members, n=4, method="inclusive")
            numbers |= {f"q25/{name}": low, f"q75/{name}": high}
    return numbers


def bounded(line: Line) -> Line:
    """A step in which names of many layers are those of their extremes, member by member."""
    layers = _layers(line)
    short = {name: value for name, value in line.items() if not any(name in names for names in layers.values())}
    for base, names in layers.items():
        values = [line[name] for name in names]
        short |= {f"{base}_layer_{which}": _extreme(values, choose) for which, choose in EXTREMES.items()}
    return short


def bounded_quantities(quantities: Mapping[str, Quantity]) -> dict[str, Quantity]:
    """What the names mean that `bounded` leaves."""
    layers, words = _layers(quantities), {"min": "least", "max": "largest"}
    short = {name: q for name, q in quantities.items() if not any(name in names for names in layers.values())}
    for base, names in layers.items():
        for which, word in words.items():
            meaning = f"the {word} {base}_layer_N of {len(names)} MoE layers"
            short[f"{base}_layer_{which}"] = replace(quantities[names[0]], formula=meaning)
    return short


def _layers(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of each quantity that has more than `LAYERS` layers."""
    layers: dict[str, list[str]] = {}
    for name in names:
        if match := re.fullmatch(r"(.+)_layer_\d+", name):
            layers.setdefault(match[1], []).append(name)
    return {base: each for base, each in layers.items() if len(each) > LAYERS}


def _extreme(values: Sequence[Any], choose: Callable[[Iterable[float]], float]) -> Any:
    """The extreme of numbers, or of each member's; None where one is missing."""
    if any(isinstance(value, list) for value in values):
        return [_extreme(each, choose) for each in zip(*values, strict=True)]
    return None if None in values else choose(values)


def hyper(config: Mapping[str, Any]) -> dict[str, Hyper]:
    """Nested settings under dotted keys; lists and infinities as text, since not every sink takes them."""
    return {key: _plain(value) for key, value in flat(dict(config)).items() if value is not None}


def identity(file: Path) -> str:
    """The id that a file keeps, or a new one."""
    if not file.is_file():
        write_whole(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8").strip()


def explain(quantities: Mapping[str, Quantity]) -> dict[str, str]:
    """One line for each name: formula, unit, source.

    Example:
        >>> explain({"kl": Quantity(formula="mean(-D)", unit="nats/token", source="k1")})
        {'kl': 'mean(-D) [nats/token]; k1'}
    """
    return {name: f"{q.formula} [{q.unit}]; {q.source}" for name, q in quantities.items()}


def _plain(value: Any) -> Hyper:
    if isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
