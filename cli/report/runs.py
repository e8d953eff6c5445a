"""Run folders as arrays. Shapes: S logged steps, M members."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstorder.core.errors import ConfigError
from firstorder.core.runs import events
from firstorder.core.runs.events import Event
from firstorder.core.runs.logs import LOGS, Line, described, read
from firstorder.core.settings.toml import flat, parse

from .outcome import RunOutcome, run_outcome

Array = NDArray[np.float64]

SEEDS = ("sim.seed", "torchtitan.seed")  # of the first member

log = logging.getLogger("firstorder")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One logged quantity of one run.

    Args:
        steps: the `step` of the lines that hold it, `[S]`.
        values: one column a member, `[S, M]`; NaN where the log says null.
    """

    steps: NDArray[np.int64]
    values: Array


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder holds: the flat configuration, every logged quantity of both logs by name, its alarms, and what
    became of it, None where nothing says that yet."""

    label: str
    config: dict[str, Any]
    logged: dict[str, Series]
    receipts: tuple[str, ...]
    alarms: tuple[Event, ...] = ()
    outcome: RunOutcome | None = None

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return str(self.config.get("about.name", "?"))

    @property
    def steps(self) -> int:
        """Global steps done."""
        return max((int(series.steps[-1]) + 1 for series in self.logged.values()), default=0)

    @property
    def planned(self) -> int:
        """Global steps that the schedule asks for."""
        return int(self.config.get("schedule.steps", self.steps))

    @property
    def members(self) -> int:
        """Policies trained at once."""
        logged = (int(series.values.shape[1]) for series in self.logged.values())
        return max(logged, default=int(self.config.get("sim.members", 1)))

    @property
    def seeds(self) -> str:
        """The seeds of its members, from the first to the last."""
        first = next((int(self.config[key]) for key in SEEDS if key in self.config), None)
        if first is None:
            return "not set"
        return str(first) if self.members == 1 else f"{first} to {first + self.members - 1}"


def read_runs(paths: list[Path]) -> list[Run]:
    """The runs, each under a label of its own.

    Raises:
        ConfigError: not a run folder, nothing logged yet, a damaged log, or a folder given twice.
    """
    for i, path in enumerate(paths):
        if path.resolve() in [p.resolve() for p in paths[:i]]:
            raise ConfigError(f"run {path} is given twice; name each run once")
    runs = [read_run(path, label) for path, label in zip(paths, labels(paths), strict=True)]
    for run, path in zip(runs, paths, strict=True):
        if run.logged.keys() <= set(run.receipts):
            raise ConfigError(f"{path} holds no metrics yet; let the run finish a step first")
    return runs


def labels(paths: list[Path]) -> list[str]:
    """The folders' names, with as many folders above as it takes to tell them apart.

    Example:
        >>> labels([Path("/a/r2"), Path("/a/r3")]), labels([Path("/a/r3"), Path("/b/r3")])
        (['r2', 'r3'], ['a/r3', 'b/r3'])
    """
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The configuration keys on which the runs differ, one value a run, None where not set; names aside."""
    keys = dict.fromkeys(key for run in runs for key in run.config if not key.startswith("about."))
    rows = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def read_run(path: Path, label: str) -> Run:
    """One run, which may have logged nothing yet; raises as `read_runs`."""
    file = path / "config.toml"
    if not file.is_file():
        raise ConfigError(f"{path} is not a run folder, it holds no config.toml; give a folder that train wrote")
    try:
        config = flat(parse(file))
    except ConfigError as error:
        raise ConfigError(f"{error}; give another run") from None
    metrics, receipts = (_lines(path / f"{name}.jsonl") for name in LOGS)
    alarms = tuple(events.read(path))
    acted = {line["step"]: line for line in receipts}
    both = [line | acted.get(line["step"], {}) for line in metrics]
    return Run(
        label=label,
        config=config,
        logged=_series(metrics) | _series(receipts),
        receipts=tuple(_series(receipts)),
        alarms=alarms,
        outcome=run_outcome(both, config, alarms),
    )


def _lines(file: Path) -> list[Line]:
    """The steps of a log; a last line that is only half written is left out, and steps that are missing are said.

    Raises:
        ConfigError: a line is damaged.
    """
    content = read(file)
    damaged = [fault for fault in content.faults if "missing" not in fault]
    if damaged:
        raise ConfigError(f"{file} is damaged, {described(damaged)}; resume the run, or give another")
    if content.faults:
        log.warning("%s: %s; the figures have a gap there", file, described(content.faults))
    return content.lines


def _series(lines: list[Line]) -> dict[str, Series]:
    """The quantities of a log by name."""
    columns: dict[str, tuple[list[int], list[list[float]]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step":
                steps, rows = columns.setdefault(name, ([], []))
                steps.append(line["step"])
                rows.append([np.nan if v is None else v for v in (value if isinstance(value, list) else [value])])
    return {
        name: Series(steps=np.asarray(steps, dtype=np.int64), values=np.asarray(rows, dtype=np.float64))
        for name, (steps, rows) in columns.items()
    }
