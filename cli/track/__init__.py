"""Sinks of `firstorder train --track`: one module each, which imports its library when a run asks for it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firstorder.core.runs.track import Opener, Sink, Tracked

SINKS = {"tensorboard": "TensorBoard", "wandb": "WandB", "trackio": "Trackio"}


def openers(names: Iterable[str]) -> dict[str, Opener]:
    """What opens each sink, by name; its library is there, but not imported yet.

    Raises:
        ConfigError: an unknown sink, or one whose extra is not installed.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.core.settings.toml import nearest

    for name in names:
        if name not in SINKS:
            raise ConfigError(f"no sink --track {name}; {nearest(name, SINKS)}sinks: {', '.join(SINKS)}")
        if find_spec(name) is None:
            raise ConfigError(f"--track {name} needs its library; pip install 'firstorder[{name}]'")
    return {name: partial(_open, name) for name in names}


def _open(name: str, run: Tracked) -> Sink:
    """Import the module of a sink and open it."""
    sink: Sink = getattr(import_module(f"{__name__}.{name}"), SINKS[name])(run)
    return sink
