"""A training run on the real engines: its settings, checks, both engines and the run folder."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stored import resolved
from firstorder.core.training.arms import Arm
from firstorder.core.training.inert import inert_parts
from firstorder.core.training.interrupt import Interrupted
from firstorder.core.training.loop import logged_quantities
from firstorder.core.training.session import Ranks, Session, opened

from . import ranks
from .checks import check, check_ranks
from .export import MODEL, export
from .pair import EnginePair, RunSettings
from .ranks import broadcast_from_rank0, detect_lost_rank, is_rank0, launched_ranks
from .rollouts import Engine
from .tasks.config import TaskSettings
from .tasks.registry import Tasks
from .torchtitan.config import CHANGEABLE, Torchtitan
from .vllm.config import REACHED, Vllm

log = logging.getLogger("firstorder")


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """A recipe on the real engines: a `core.training.session.TrainingRun`.

    Args:
        recipe: method, schedule and optimiser.
        torchtitan: the training engine.
        vllm: the rollout engine.
        task: what is learnt.
    """

    recipe: Recipe
    torchtitan: Torchtitan
    vllm: Vllm
    task: TaskSettings

    @property
    def ranks(self) -> Ranks:
        """Those that torchrun starts."""
        return ranks

    def settings(self) -> dict[str, Any]:
        """The resolved configuration, nested tables."""
        sections = {"torchtitan": self.torchtitan, "vllm": self.vllm, "task": self.task}
        return self.recipe.model_dump() | {name: section.model_dump() for name, section in sections.items()}

    def inert(self) -> list[str]:
        """The parts of the recipe that cannot act in its schedule, one sentence each."""
        return inert_parts(self.recipe, stale=self.recipe.schedule.minibatches > 1)

    def check(self) -> None:
        """Refuse what cannot be trained, before an engine starts.

        Raises:
            ConfigError: a package, the model, a method, a length, the task, its tokenizer or the ranks do not fit.
        """
        self._tasks()

    def prepare(self, out: Path, *, resume: bool = False, changeable: Collection[str] = ()) -> Session:
        """Check everything, open the run folder, start both engines and restore the newest checkpoint.

        Args:
            out: the folder.
            resume: go on in it.
            changeable: dotted keys that may have other values on resuming, besides those that always may.

        Raises:
            ConfigError: the recipe cannot be trained here, or the folder cannot be used.
            DataError: the engines do not agree on the weights they were given.
        """
        tasks = self._tasks()
        from .torchtitan.adapter import start_process_group

        start_process_group(self.torchtitan.timeout)
        config = self.settings()
        may = [*changeable, *(f"torchtitan.{key}" for key in CHANGEABLE), *(f"vllm.{key}" for key in REACHED)]
        with detect_lost_rank():
            if self.vllm.servers:
                from .vllm.replicas import check_servers

                broadcast_from_rank0(lambda: check_servers(self.vllm, self.torchtitan.model))
            with opened(out, config, resume=resume, changeable=may, resolved=resolved_run, ranks=ranks) as (
                folder,
                checkpoint,
            ):
                pair = open_pair(self.recipe, self.torchtitan, self.vllm, tasks, out / "checkpoints")
                broadcast_from_rank0(lambda: folder.describe(logged_quantities(pair)))
                if checkpoint is None:
                    pair.check()
                else:
                    pair.load(checkpoint.state)
        first = 0 if checkpoint is None else checkpoint.step
        return Session(
            arms=(Arm(recipe=self.recipe),),
            backend=pair,
            folder=folder,
            first=first,
            checkpoint_every=self.torchtitan.checkpoint_every,
            ranks=ranks,
            around=partial(exported, pair, out, trained=first < self.recipe.schedule.steps),
            checksums=pair.trainer.digests,
        )

    def _tasks(self) -> Tasks:
        tasks = check(self.recipe, self.torchtitan, self.vllm, self.task)
        check_ranks(self.torchtitan, self.vllm, launched_ranks())
        return tasks


def resolved_run(stored: dict[str, Any]) -> dict[str, Any]:
    """What a run folder was reserved for, with the keys of today."""
    return resolved(stored, {"torchtitan": Torchtitan, "vllm": Vllm, "task": TaskSettings})


@contextmanager
def exported(pair: EnginePair, run: Path, *, trained: bool) -> Iterator[None]:
    """The steps of a run, after which its model is exported, unless it is there and nothing was trained.

    Raises:
        LostRankError: another rank is gone.
        DiskError: the model cannot be written.
    """
    with detect_lost_rank():
        try:
            yield
        except Interrupted:
            pair.engine.close()
            raise
        if broadcast_from_rank0(lambda: trained or not (run / MODEL).is_dir()):
            export(pair.trainer, run)


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

        gates = recipe.router_replay.mode == "R3" and recipe.router_replay.gates == "replayed"
        engine = InProcessEngine(vllm, titan.model, tasks.ends, titan.seed, gates=gates)
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
