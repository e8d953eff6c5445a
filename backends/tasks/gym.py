"""`reasoning-gym`: problems of any of its generators, scored by the generator itself.

A generator's problems are numbered and those of one seed; a row's number is a hash, so a run sees the same ones again.
Its score of an answer that it cannot read is often an exception, and counts 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

from firstorder.core.errors import ConfigError
from firstorder.core.settings.toml import nearest

from .config import TaskSettings
from .problems import Generated, Problem
from .verifiable import Judge, conclusion
from .worker import Worker

SYSTEM = "Think first. Then give the final answer, and nothing else, between <answer> and </answer>."
PACKAGES = ("reasoning_gym",)
CACHED = 4096  # problems, some of which take seconds to make
FIXED: dict[str, Any] = {"seed": 0, "size": 10_000}  # unless task.options say otherwise


def problems(settings: TaskSettings) -> tuple[Generated, Generated]:
    """Those that are trained on, and those that are held out.

    Raises:
        ConfigError: no such dataset, or it refuses its options.
    """
    options = FIXED | settings.options
    dataset = made(settings.dataset, options)

    @lru_cache(maxsize=CACHED)
    def draw(number: int) -> Problem:
        entry = dataset[number % options["size"]]
        return Problem(entry["question"], entry)

    name = f"reasoning-gym {settings.dataset}"
    train, held_out = (Generated(draw, side, settings.held_out, name) for side in (False, True))
    return train, held_out


def made(name: str, options: dict[str, Any]) -> Any:
    """A dataset.

    Raises:
        ConfigError: there is none of that name, or it refuses the options.
    """
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise ConfigError(f"task.dataset: reasoning-gym has no {name!r}; {nearest(name, DATASETS)}see its gallery")
    if type(options["size"]) is not int or options["size"] < 1:
        raise ConfigError(f"task.options.size must be a whole number of at least 1, got {options['size']!r}")
    try:
        return reasoning_gym.create_dataset(name, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"task.options: {name} of reasoning-gym rejects them: {error}") from None


def judge(settings: TaskSettings) -> Judge:
    """The dataset's own score."""
    source = (settings.dataset, json.dumps(FIXED | settings.options))
    worker = Worker(score, partial(held, *source), settings.seconds, settings.memory_mib)

    def earned(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        answers = [conclusion(text) for text in texts]
        rewards = worker((*source, p.reference, answer) for p, answer in zip(problems, answers, strict=True))
        return [reward or 0.0 for reward in rewards]

    return earned


@lru_cache(maxsize=1)
def held(name: str, options: str) -> Any:
    """The dataset of a name and of options in JSON, made once in a process."""
    return made(name, json.loads(options))


def score(name: str, options: str, entry: dict[str, Any], answer: str) -> float:
    """What the dataset gives for an answer to one of its entries."""
    return float(held(name, options).score_answer(answer, entry))
