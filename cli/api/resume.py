"""A run that goes on from its folder alone, and one that is finished made longer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .overrides import laid
from .train import TrainResult, go_on

if TYPE_CHECKING:
    from .overrides import Overrides

STEPS = "schedule.steps"  # of which a run may have more than it was started with


def resume(
    folder: str | os.PathLike[str],
    overrides: Overrides = (),
    *,
    track: Sequence[str] = (),
    alarm: str | None = None,
    **keys: Any,
) -> TrainResult:
    """Go on with a run from its newest checkpoint, by the settings in its folder, or make it longer.

    The run is shown in the sinks that show it, its alarms are watched if they were, and batches are dumped on.

    Args:
        folder: that `firstorder train` has made.
        overrides: `schedule.steps`, no less than it was, and what may change on the engines; another value of anything
            else is refused.
        track: further sinks: tensorboard, wandb, trackio.
        alarm: watch, or stop at an alarm in half of the members.
        keys: as of `train`.

    Raises:
        ConfigError: the folder holds no run, or a setting differs from the run's.
        DataError: it has checkpoints, and none is whole.
        Interrupted: a signal or an alarm asked the run to stop; the step is saved.
    """
    path = Path(folder)
    tables = _configuration(path)
    backend = "sim" if "sim" in tables else "torchtitan"
    given = laid(overrides, keys, simulated=backend == "sim")
    _check_longer(path, tables, given)
    return go_on(
        path,
        given,
        backend=backend,
        changeable=(STEPS,) if any(key == STEPS for key, _ in given) else (),
        track=[*dict.fromkeys([*_sinks(path), *track])],
        alarm=alarm or ("watch" if (path / "alarms.jsonl").is_file() else None),
        dump=_dumped(path),
    )


def _configuration(path: Path) -> dict[str, Any]:
    """The settings of a run that `train` started."""
    from firstorder.core.errors import ConfigError
    from firstorder.core.settings.toml import parse

    file = path / "config.toml"
    if not file.is_file():
        raise ConfigError(f"{path} holds no run to resume, no {file.name}; `firstorder train RECIPE` starts one")
    tables = parse(file)
    if "schedule" not in tables:
        raise ConfigError(f"{path} holds no run of `firstorder train`, but something else; give the folder of one")
    return tables


def _check_longer(path: Path, tables: dict[str, Any], given: Sequence[tuple[str, Any]]) -> None:
    """Refuse to make a run shorter."""
    from firstorder.core.errors import ConfigError

    before, warmup = tables["schedule"].get("steps"), tables.get("torchtitan", {}).get("warmup_steps", 0)
    for value in (value for key, value in given if key == STEPS and isinstance(value, int) and isinstance(before, int)):
        if value < before:
            raise ConfigError(f"{path} was run with {STEPS} = {before}, got {value}; a run can only be made longer")
        if value > before and warmup > before * tables["schedule"]["minibatches"]:
            raise ConfigError(
                f"{path} has warmed up over all its updates, fewer than torchtitan.warmup_steps = {warmup}; "
                "start a longer run instead"
            )


def _sinks(path: Path) -> list[str]:
    """Those that have shown the run."""
    from firstorder.cli.track import SINKS

    return [name for name in SINKS if (path / "tracking" / name).is_dir()]


def _dumped(path: Path) -> str | None:
    """The form of its dump, None where it has none."""
    from firstorder.core.formats.neutral import SUFFIX

    dump = path / "dump"
    if not dump.is_dir():
        return None
    return "neutral" if next(dump.rglob(f"*{SUFFIX}"), None) else "prime-rl"
