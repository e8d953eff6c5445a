"""The models that ship: their sizes, as config.json names them, and the engines' settings on a cluster; no weights."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from firstorder.backends.folder import Shape, read_shape
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.core.errors import ConfigError
from firstorder.core.toml import build, override, read

ENGINES = ("torchtitan", "vllm", "task")
DEFAULT = "qwen3-30b-a3b"


def folder(name: str = DEFAULT) -> Path:
    """Where config.json and engines.toml of a model lie."""
    return Path(str(resources.files("firstorder.backends.promote") / "models" / name))


def shape_of(name: str = DEFAULT) -> Shape:
    """The sizes of a model."""
    return read_shape(folder(name))


def engines(assignments: Sequence[str] = (), name: str = DEFAULT) -> tuple[Torchtitan, Vllm, TaskSettings]:
    """The engines' settings for a model and the task, under assignments `torchtitan.a=value`, `vllm.b=value`, ...

    Raises:
        ConfigError: an assignment is of none of them, or not valid.
    """
    for assignment in assignments:
        if assignment.partition(".")[0].strip() not in ENGINES:
            raise ConfigError(
                f"--set {assignment} would change the recipe, which is promoted byte for byte; "
                f"set keys of {', '.join(f'[{engine}]' for engine in ENGINES)}, or edit the recipe"
            )
    tree = override(read(str(folder(name) / "engines.toml")), assignments)
    titan, vllm = build(Torchtitan, tree["torchtitan"], "torchtitan"), build(Vllm, tree["vllm"], "vllm")
    return titan, vllm, build(TaskSettings, tree["task"], "task")
