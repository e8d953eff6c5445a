"""What a run on the real engines is refused for, before an engine starts."""

from __future__ import annotations

from pathlib import Path

import torch

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe, check_runs
from firstorder.core.method.terms import check_sampled
from firstorder.core.training.loop import check_trainable

from .extras import require
from .folder import Shape, read_shape
from .tasks.config import TaskSettings
from .tasks.registry import Tasks, open_tasks
from .torchtitan.config import Torchtitan
from .vllm.config import Vllm
from .weights import open_weights


def check(recipe: Recipe, titan: Torchtitan, vllm: Vllm, task: TaskSettings) -> Tasks:
    """Refuse what cannot run, before an engine starts.

    Returns:
        The tasks, opened for the model.

    Raises:
        ConfigError: a package, the model, a method, a length, the task or its tokenizer does not fit.
    """
    check_method(recipe)
    if not titan.model:
        raise ConfigError("torchtitan.model is not set; give a model folder, e.g. from `firstorder coldstart`")
    if titan.compile != "none" and not vllm.servers and not torch.accelerator.is_available():
        raise ConfigError(
            f"torchtitan.compile = {titan.compile} on a CPU with vLLM in the same process, which runs without "
            "torch.compile there; set vllm.servers or compile = none"
        )
    shape = read_shape(Path(titan.model))
    check_layout(titan, shape)
    check_lengths(titan, vllm)
    if vllm.servers:
        check_served(recipe)
    require("torchtitan", "safetensors", *(() if vllm.servers else ("vllm",)))
    if not vllm.servers:
        from .vllm.arguments import check_device

        check_device(vllm)
    open_weights(Path(titan.model), shape)
    return open_tasks(task, Path(titan.model), vllm.max_prompt)


def check_method(recipe: Recipe) -> None:
    """Refuse a recipe that the engines cannot train, whatever the model.

    Raises:
        ConfigError: a part of it.
    """
    check_runs(recipe)
    check_trainable(recipe)
    check_sampled(recipe)
    if recipe.has_critic:
        raise ConfigError(
            "advantage.baseline = value needs a critic, which torchtitan's models lack; set another baseline, or train "
            "with --backend sim"
        )
    if recipe.optimizer.kind != "adamw":
        raise ConfigError(f"torchtitan has no optimizer.kind = {recipe.optimizer.kind}; set optimizer.kind = adamw")


def check_served(recipe: Recipe) -> None:
    """Refuse what needs more of a rollout engine than a server of vLLM sends.

    Raises:
        ConfigError: its gate weights.
    """
    replay = recipe.router_replay
    if replay.mode == "R3" and replay.gates == "replayed":
        raise ConfigError(
            "router_replay.mode = R3 with router_replay.gates = replayed needs the gate weights of the rollout engine, "
            "and a server of vLLM sends ids of experts alone; sample in one process, without vllm.servers, or set "
            "router_replay.gates = live or router_replay.mode = R2"
        )


def check_lengths(titan: Torchtitan, vllm: Vllm) -> None:
    """Refuse responses that do not fit into a row.

    Raises:
        ConfigError: saying by how much.
    """
    longest = vllm.max_prompt + vllm.max_tokens
    if longest > titan.pack_length:
        raise ConfigError(
            f"vllm.max_prompt + vllm.max_tokens = {longest} do not fit into "
            f"torchtitan.pack_length = {titan.pack_length}; raise it"
        )


def check_layout(titan: Torchtitan, shape: Shape) -> None:
    """Refuse degrees that do not divide what they share out.

    Raises:
        ConfigError: heads or experts cannot be shared out.
    """
    for heads in ("num_attention_heads", "num_key_value_heads"):
        count = getattr(shape, heads)
        if count % titan.tensor:
            raise ConfigError(
                f"torchtitan.tensor = {titan.tensor} must divide {heads} = {count} of the model; lower it"
            )
    if shape.num_experts % titan.expert:
        raise ConfigError(
            f"torchtitan.expert = {titan.expert} must divide num_experts = {shape.num_experts} of the model; lower it"
        )


def check_degrees(titan: Torchtitan, ranks: int) -> None:
    """Refuse degrees that the ranks cannot have.

    Raises:
        ConfigError: a degree does not fit.
    """
    for degree in ("tensor", "expert"):
        if ranks % getattr(titan, degree):
            raise ConfigError(
                f"torchtitan.{degree} = {getattr(titan, degree)} must divide the number of ranks, got {ranks}; "
                "lower it or start more ranks with torchrun"
            )
    if titan.shard not in (-1, ranks // titan.tensor):
        raise ConfigError(
            f"torchtitan.shard = {titan.shard} times tensor = {titan.tensor} must be the number of ranks, got {ranks} "
            "ranks; set shard = -1"
        )


def check_ranks(titan: Torchtitan, vllm: Vllm, ranks: int) -> None:
    """Refuse a layout that the ranks cannot have.

    Raises:
        ConfigError: a degree does not fit, or several ranks have no servers to sample from.
    """
    check_degrees(titan, ranks)
    if ranks > 1 and not vllm.servers:
        raise ConfigError("several ranks need vLLM on servers; set vllm.servers, see docs/engines.md")
    if vllm.tensor > 1 and not vllm.servers:
        raise ConfigError(f"vllm.tensor = {vllm.tensor} needs vLLM on servers; set vllm.servers, see docs/engines.md")
