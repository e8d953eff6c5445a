"""The tasks by the name that `task.kind` takes, opened for a model and checked before a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from firstorder.backends.extras import require
from firstorder.core.errors import ConfigError, DataError
from firstorder.core.tasks import Task

from . import code, guess, gym, mathematics, sums, text
from .chat import read_chat
from .config import Kind, TaskSettings
from .problems import ENDLESS
from .verifiable import Verifiable

KINDS: dict[Kind, ModuleType] = {
    "reasoning-gym": gym,
    "sums": sums,
    "math": mathematics,
    "code": code,
    "text": text,
    "guess": guess,
}
LOOKED_AT = 16  # prompts of a generator that are checked before a run; of a file, all are


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """What a run learns, what it is evaluated on, and the tokens that end a turn of either."""

    train: Task
    held_out: Task
    ends: tuple[int, ...]


def open_tasks(settings: TaskSettings, folder: Path, longest: int) -> Tasks:
    """The tasks of a section for the model of a folder.

    Args:
        settings: the `[task]` section.
        folder: the model's, with its tokenizer.
        longest: tokens of a prompt.

    Raises:
        ConfigError: problems, verifier or tokenizer are missing or do not fit together, or a prompt is too long.
    """
    module = KINDS[settings.kind]
    chat = read_chat(folder)
    require(*module.PACKAGES)
    system = module.SYSTEM if settings.system is None else settings.system
    judge = module.judge(settings)

    def opened(side: object) -> Verifiable:
        fields = {"chat": chat, "problems": side, "judge": judge, "system": system, "truncated": settings.truncated}
        return guess.Guess(**fields, turns=settings.turns) if settings.kind == "guess" else Verifiable(**fields)

    try:
        train, held_out = (opened(side) for side in module.problems(settings))
        for task in (train, held_out):
            check_length(task, longest)
        if isinstance(train, guess.Guess):
            chat.answer(guess.NONE)
    except DataError as error:
        raise ConfigError(f"task.kind = {settings.kind}: {error}") from None
    return Tasks(train=train, held_out=held_out, ends=chat.ends)


def check_length(task: Task, limit: int) -> None:
    """Refuse prompts that are longer than the rollout engine takes.

    Raises:
        ConfigError: with the longest that was found.
    """
    count = task.size if task.size < ENDLESS else LOOKED_AT
    longest_prompt = int(task.prompts(torch.arange(count)).lengths.max())
    if longest_prompt > limit:
        raise ConfigError(
            f"the longest of {count} prompts has {longest_prompt} tokens, and vllm.max_prompt is {limit}; raise it, or "
            "leave out the long ones"
        )
