"""The models that ship: their sizes, as config.json names them, and the engines' settings on a cluster; no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from firstorder.backends.folder import Shape, read_shape
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.core.errors import ConfigError
from firstorder.core.settings.toml import assign, build, read

ENGINES = ("torchtitan", "vllm", "task")
DEFAULT = "qwen3-30b-a3b"
ID = "Qwen/Qwen3-30B-A3B-Base"  # on huggingface.co; the checkpoint of arXiv 2512.01374


def folder(name: str = DEFAULT) -> Path:
    """Where config.json and engines.toml of a model lie."""
    return Path(str(resources.files("firstorder.backends.promote") / "models" / name))


def shape_of(name: str = DEFAULT) -> Shape:
    """The sizes of a model."""
    return read_shape(folder(name))


def engines(
    settings: Sequence[tuple[str, Any]] = (), task: Mapping[str, Any] | None = None, name: str = DEFAULT
) -> tuple[Torchtitan, Vllm, TaskSettings]:
    """The engines' settings for a model and the task, under settings of `torchtitan.a`, `vllm.b`, ...

    Args:
        settings: dotted keys of the three sections with their values.
        task: the `[task]` section of what is promoted, if it has one.
        name: of the model.

    Raises:
        ConfigError: a key is of none of them, or a value not valid; no task is set, or its files are not where every
            node finds them.
    """
    for key, _ in settings:
        if key.partition(".")[0].strip() not in ENGINES:
            raise ConfigError(
                f"--set {key} would change the recipe, which is promoted as it is; "
                f"set keys of {', '.join(f'[{engine}]' for engine in ENGINES)}, or edit the recipe"
            )
    tree = assign(read(str(folder(name) / "engines.toml")) | {"task": dict(task or {})}, settings)
    titan, vllm = build(Torchtitan, tree["torchtitan"], "torchtitan"), build(Vllm, tree["vllm"], "vllm")
    if "kind" not in tree["task"]:
        raise ConfigError(
            "no task is set, so nothing says what to train on; give --set task.kind=math --set "
            "'task.files=[\"/data/problems.jsonl\"]', or --set task.kind=reasoning-gym --set task.dataset=NAME"
        )
    made = build(TaskSettings, tree["task"], "task")
    for file in made.files:
        if not Path(file).is_absolute():
            raise ConfigError(f"task.files: {file} is relative, and nodes run elsewhere; give the path on the cluster")
    return titan, vllm, made
