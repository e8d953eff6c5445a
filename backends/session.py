"""A run on the real engines: everything checked, both engines started, run folder and resume."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firstorder.core.errors import NotFiniteError
from firstorder.core.finite import check_finite
from firstorder.core.method.recipe import Recipe
from firstorder.core.runs.folder import RunFolder
from firstorder.core.training.arms import Arm
from firstorder.core.training.inert import inert_parts
from firstorder.core.training.interrupt import Asked, Interrupted, never
from firstorder.core.training.loop import DIVERGED, StepLog, described, train

from .checks import check, check_ranks
from .export import MODEL, export
from .pair import EnginePair, RunSettings
from .ranks import all_reduce_max, broadcast_from_rank0, detect_lost_rank, is_rank0, launched_ranks
from .rollouts import Engine
from .tasks.config import TaskSettings
from .tasks.registry import Tasks
from .torchtitan.config import CHANGEABLE, Torchtitan
from .vllm.config import REACHED, Vllm

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
    check_ranks(titan, vllm, launched_ranks())
    from .torchtitan.adapter import start_process_group

    start_process_group(titan.timeout)
    free = [f"torchtitan.{key}" for key in CHANGEABLE] + [f"vllm.{key}" for key in REACHED]
    with detect_lost_rank():
        if vllm.servers:
            from .vllm.replicas import check_servers

            broadcast_from_rank0(lambda: check_servers(vllm, titan.model))
        folder = broadcast_from_rank0(lambda: RunFolder(out, config, resume=resume, changeable=free))
        try:
            found = broadcast_from_rank0(lambda: folder.latest() if resume else None)
            backend = open_pair(recipe, titan, vllm, tasks, out / "checkpoints")
            broadcast_from_rank0(lambda: folder.describe(described(backend)))
            if found is None:
                backend.check()
            else:
                backend.load(found.state)
        except BaseException:
            if is_rank0() and not resume:
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
    if engine.emulated and is_rank0():
        log.warning("vLLM emulates vllm.quantization = %s: it has no such kernels for a CPU", vllm.quantization)
    settings = RunSettings(
        recipe=recipe,
        seed=titan.seed,
        evaluate_every=titan.evaluate_every,
        evaluate_prompts=titan.evaluate_prompts,
        probe_prompts=vllm.probe_prompts,
        probe_limit=vllm.limit,
        longest=vllm.max_prompt,
    )
    return EnginePair(trainer, engine, tasks, settings)


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
        broadcast_from_rank0(lambda: training.folder.append(log))
        after, signal = log.step + 1, all_reduce_max(asked())  # one rank's signal is every rank's
        if signal or after % training.checkpoint_every == 0 or after == training.steps:
            state = training.backend.state()  # every rank writes its own shards
            parts = training.backend.trainer.digests(after)
            broadcast_from_rank0(lambda: training.folder.save(after, state, parts))
        done(log)
        if signal and after < training.steps:
            training.backend.engine.close()
            raise Interrupted(signal, after)

    try:
        with detect_lost_rank():
            train(training.arms, training.backend, training.first, record)
            model = training.folder.path / MODEL
            if broadcast_from_rank0(lambda: training.first < training.steps or not model.is_dir()):
                export(training.backend.trainer, training.folder.path)
    except NotFiniteError as error:
        raise training.folder.stopped(error, after) from None
    finally:
        training.folder.close()
