"""A run on the real engines: everything checked, both engines started, run folder and resume."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from firstorder.core.errors import ConfigError, NotFiniteError
from firstorder.core.finite import check_finite
from firstorder.core.method.recipe import Recipe, check_runs, inert_parts
from firstorder.core.runs.folder import RunFolder
from firstorder.core.training.arms import Arm
from firstorder.core.training.interrupt import Asked, Interrupted, never
from firstorder.core.training.loop import DIVERGED, StepLog, check_trainable, described, train

from .export import MODEL, export
from .extras import require
from .folder import Shape, read_shape
from .pair import EnginePair, Plan
from .ranks import first, largest, together, told, world
from .rollouts import Engine
from .tasks.config import TaskSettings
from .tasks.registry import Tasks, open_tasks
from .torchtitan.config import CHANGEABLE, Torchtitan
from .vllm.config import REACHED, Vllm
from .weights import open_weights

log = logging.getLogger("firstorder")


def inert(recipe: Recipe, titan: Torchtitan, vllm: Vllm, task: TaskSettings) -> list[str]:
    """The parts of a recipe that cannot act in its schedule, one sentence each."""
    return inert_parts(recipe, stale=recipe.schedule.minibatches > 1)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run that is ready to go: its arms, which are one, engines, folder, first step, and how often it is saved."""

    arms: tuple[Arm, ...]
    backend: EnginePair
    folder: RunFolder
    first: int
    checkpoint_every: int

    @property
    def steps(self) -> int:
        """Global steps of the schedule."""
        return self.arms[0].recipe.schedule.steps


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
    if recipe.has_critic:
        raise ConfigError(
            "advantage.baseline = value wants a critic, which torchtitan's models lack; set another baseline, or train "
            "with --backend sim"
        )
    if recipe.optimizer.kind != "adamw":
        raise ConfigError(
            f"optimizer.kind = {recipe.optimizer.kind} is not one of torchtitan's; set optimizer.kind = adamw"
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


def prepare(
    recipe: Recipe, titan: Torchtitan, vllm: Vllm, task: TaskSettings, out: Path, *, resume: bool = False
) -> Training:
    """Check everything, open the run folder, start both engines and restore the newest checkpoint.

    Args:
        recipe: method, schedule and optimiser.
        titan: the training engine.
        vllm: the rollout engine.
        task: what is learnt.
        out: the run folder.
        resume: go on from its newest checkpoint.

    Raises:
        ConfigError: the recipe cannot be trained here, or the folder cannot be used.
        DataError: the engines do not agree on the weights they were given.
    """
    tasks = check(recipe, titan, vllm, task)
    sections = {"torchtitan": titan, "vllm": vllm, "task": task}
    config = recipe.model_dump() | {name: section.model_dump() for name, section in sections.items()}
    check_ranks(titan, vllm, world())
    from .torchtitan.adapter import start_process_group

    start_process_group(titan.timeout)
    free = [f"torchtitan.{key}" for key in CHANGEABLE] + [f"vllm.{key}" for key in REACHED]
    with together():
        if vllm.servers:
            from .vllm.replicas import check_servers

            told(lambda: check_servers(vllm, titan.model))
        folder = told(lambda: RunFolder(out, config, resume=resume, changeable=free))
        try:
            found = told(lambda: folder.latest() if resume else None)
            backend = open_pair(recipe, titan, vllm, tasks, out / "checkpoints")
            told(lambda: folder.describe(described(backend)))
            if found is None:
                backend.check()
            else:
                backend.load(found.state)
        except BaseException:
            if first() and not resume:
                folder.discard()  # a start that is refused leaves no folder behind
            folder.close()
            raise
    return Training(
        arms=(Arm(recipe=recipe),),
        backend=backend,
        folder=folder,
        first=0 if found is None else found.step,
        checkpoint_every=titan.checkpoint_every,
    )


def open_pair(recipe: Recipe, titan: Torchtitan, vllm: Vllm, tasks: Tasks, checkpoints: Path) -> EnginePair:
    """Start the trainer, then the rollout engine: the trainer's process group must be there first."""
    from .torchtitan.trainer import Trainer

    trainer = Trainer(titan, recipe, vllm.temperature, checkpoints)

    engine: Engine
    if vllm.servers:
        from .vllm.served import ServedEngine

        engine = ServedEngine(vllm, titan.model, tasks.ends)
    else:
        from .vllm.arguments import prepare as set_variables

        set_variables(vllm)
        from .vllm.engine import InProcessEngine  # not before the process group and the variables are there

        engine = InProcessEngine(vllm, titan.model, tasks.ends, titan.seed)
    if engine.emulated and first():
        log.warning("vLLM emulates vllm.quantization = %s: it has no such kernels for a CPU", vllm.quantization)
    plan = Plan(
        recipe=recipe,
        seed=titan.seed,
        evaluate_every=titan.evaluate_every,
        evaluate_prompts=titan.evaluate_prompts,
        probe_prompts=vllm.probe_prompts,
        probe_limit=vllm.limit,
        longest=vllm.max_prompt,
    )
    return EnginePair(trainer, engine, tasks, plan)


def run(training: Training, done: Callable[[StepLog], None] = lambda log: None, asked: Asked = never) -> None:
    """Train and record; `done` is called after each recorded step.

    Raises:
        NotFiniteError: a gradient or a metric is not a number; the step and the newest checkpoint are named.
        DataError: a step failed; the folder stays resumable.
        Interrupted: `asked` told a rank of a signal; the step is saved.
    """

    after = training.first

    def record(log: StepLog) -> None:
        nonlocal after
        check_finite(log.metrics | log.receipts, DIVERGED)
        told(lambda: training.folder.append(log))
        after, signal = log.step + 1, largest(asked())  # one rank's signal is every rank's
        if signal or after % training.checkpoint_every == 0 or after == training.steps:
            state = training.backend.state()  # every rank writes its own shards
            parts = training.backend.trainer.digests(after)
            told(lambda: training.folder.save(after, state, parts))
        done(log)
        if signal and after < training.steps:
            training.backend.engine.close()
            raise Interrupted(signal, after)

    try:
        with together():
            train(training.arms, training.backend, training.first, record)
            model = training.folder.path / MODEL
            if told(lambda: training.first < training.steps or not model.is_dir()):
                export(training.backend.trainer, training.folder.path)
    except NotFiniteError as error:
        raise training.folder.stopped(error, after) from None
    finally:
        training.folder.close()
