"""An environment that holds the peers, and their answers from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firstorder.core.errors import ConfigError
from firstorder.core.progress import steps

from .rows import PINS

PACKAGES = (
    *(f"{name}=={version}" for name, version in PINS.items() if name != "verl"),
    "torch>=2.11,<2.14",
    "transformers>=5.5.3,<5.11",  # what verl takes
    *("ray", "omegaconf", "hydra-core", "codetiming"),  # what its functions import
)
ALONE = (f"verl=={PINS['verl']}",)  # whose own list of packages asks for an older tensordict than torchrl's
LONGEST = 600  # seconds that a peer may take; each takes about 20
BOOT = """
import importlib.util, sys
place = sys.argv[1]
spec = importlib.util.spec_from_file_location("firstorder", place + "/__init__.py", submodule_search_locations=[place])
package = importlib.util.module_from_spec(spec)
sys.modules["firstorder"] = package
spec.loader.exec_module(package)
from firstorder.backends.peers.run import main
main(*sys.argv[2:])
"""
"""Runs this room in another interpreter, which then sees this package and nothing that is installed beside it."""
VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"


def cache() -> Path:
    """Where the environment is made unless somebody says."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "firstorder" / "peers"


def build(folder: Path) -> Path:
    """The interpreter of an environment with every peer; made if it is not there, about 2 GB.

    Raises:
        ConfigError: it cannot be made, with the last line of what pip says.
    """
    python = folder / "bin" / "python"
    if _installed(python) == PINS:
        return python
    install = [str(python), "-m", "pip", "install", "-q"]
    work: list[tuple[list[str], str, dict[str, str]]] = [
        ([sys.executable, "-m", "venv", str(folder)], "cannot make an environment", {}),
        ([*install, *PACKAGES], "cannot install the peers", {}),
        ([*install, *ALONE], "cannot install verl", {"PIP_NO_DEPS": "1"}),
    ]
    for command, failed, variables in steps("environment", work):
        _ran(command, failed, variables)
    return python


def _installed(python: Path) -> dict[str, str]:
    """The releases of the peers that an interpreter has; nothing unless it has all."""
    if not python.is_file():
        return {}
    done = subprocess.run([str(python), "-c", VERSIONS, *PINS], capture_output=True, text=True, check=False)
    found: dict[str, str] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found


def _ran(command: list[str], failed: str, variables: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    except OSError as error:
        raise ConfigError(f"{failed}: {error.strerror}; give another folder") from None
    if done.returncode:
        raise ConfigError(f"{failed}: {_last(done.stderr)}; give an interpreter that has them with --python")


def answers(peer: str, python: Path, vectors: str) -> dict[str, Any]:
    """What one peer makes of the golden vectors.

    Args:
        peer: a key of `PINS`.
        python: an interpreter that has it.
        vectors: as JSON.

    Raises:
        ConfigError: it does not run there, with the last line of what it says.
    """
    import firstorder

    place = Path(firstorder.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "vectors.json", Path(folder) / "answers.json"
        given.write_text(vectors, encoding="utf-8")
        command = [str(python.absolute()), "-c", BOOT, str(place), peer, str(given), str(out)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=LONGEST, cwd=folder, env=_variables()
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"{peer} did not end within {LONGEST} s in {python}; try again") from None
        except OSError as error:
            raise ConfigError(f"{python} cannot be run: {error.strerror}; give a Python that has {peer}") from None
        if done.returncode or not out.is_file():
            raise ConfigError(f"{peer} does not run in {python}: {_last(done.stderr)}; leave out --python to make one")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def _variables() -> dict[str, str]:
    """Those of this process without what would change another interpreter; no GPU, no network, one thread."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it says nothing"
