"""The packages of the real engines: present, or one line that says how to get them."""

from __future__ import annotations

from importlib.util import find_spec

from firstorder.core.errors import ConfigError

INSTALL = "run `make engines` in a clone and use its .venv-engines, or see docs/engines.md for the two pip commands"


def require(*packages: str) -> None:
    """Refuse to go on without the packages of an engine.

    Args:
        packages: names as they are imported.

    Raises:
        ConfigError: the first that is missing, and how to install it.
    """
    for name in packages:
        if find_spec(name) is None:
            raise ConfigError(f"the real engines need {name}, which is not installed; {INSTALL}")
