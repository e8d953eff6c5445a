"""How long a run takes, and what follows from it: time-outs, checkpoints, the notice before a job's end, GPU-hours.

Seconds are estimates for responses as long as they may be (`plan.Step`), so they are met from below.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe

from .hardware import GPUS_PER_NODE
from .plan import Plan, Step

SLACK = 2.0  # times an estimate is a time-out: assumed
NOTICE = 1.25  # times a step is the notice before a job is killed: assumed
LOST = 1800.0  # seconds of work that a kill without notice may cost, unless a single step is longer
START = 1200.0  # seconds from a job's start to its first step: models are loaded, kernels compiled; assumed
SPARE = 10  # starts after faults, beside those that the time of a job makes necessary
LONGEST = 65_535  # seconds of notice that SLURM takes


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A whole run.

    Args:
        step: seconds of a global step.
        checkpoint_every: steps between checkpoints.
        steps: of the schedule.
        evaluating: seconds of all evaluations.
        notice: seconds before a job's end at which it is told, enough to finish a step and save it.
        allotted: seconds that a job may take; None if that was not said.
        jobs: how many follow one another; 1 where `allotted` is None.
        gpus: of the trainer and the rollout engines.
    """

    step: float
    checkpoint_every: int
    steps: int
    evaluating: float
    notice: int
    allotted: int | None
    jobs: int
    gpus: int

    @property
    def total(self) -> float:
        """Seconds of the run: steps, evaluations, and the start of every job."""
        return self.steps * self.step + self.evaluating + self.jobs * START

    @property
    def gpu_hours(self) -> float:
        """GPUs times hours, idle ones too."""
        return self.gpus * self.total / 3600

    @property
    def lost(self) -> float:
        """Seconds of work that a kill without notice costs at most."""
        return self.checkpoint_every * self.step

    @property
    def restarts(self) -> int:
        """How often a job may be started again."""
        return self.jobs - 1 + SPARE


def timing(recipe: Recipe, titan: Torchtitan, where: Plan, moved: Step, allotted: int | None) -> Timing:
    """The run that a plan makes.

    Args:
        recipe: its schedule.
        titan: its evaluations.
        where, moved: the plan and a step of it.
        allotted: seconds of a job, None if not known.

    Raises:
        ConfigError: a job ends before it has finished a step.
    """
    notice = min(LONGEST, _minutes(NOTICE * moved.seconds))
    steps, every = recipe.schedule.steps, titan.evaluate_every
    evaluations = (steps // every + bool(steps % every)) if every else 0
    evaluating = evaluations * -(-titan.evaluate_prompts // (where.engines * where.sequences)) * moved.response
    jobs = 1
    if allotted is not None:
        useful = allotted - START - notice
        if useful <= 0:
            raise ConfigError(
                f"--time {allotted} s ends before a step does: a start takes about {START:.0f} s, and a step with its "
                f"notice up to {notice} s; give at least {clock(_minutes(START + notice + moved.seconds))}"
            )
        jobs = math.ceil((steps * moved.seconds + evaluating) / useful)
    return Timing(
        step=moved.seconds,
        checkpoint_every=titan.checkpoint_every,
        steps=steps,
        evaluating=evaluating,
        notice=notice,
        allotted=allotted,
        jobs=jobs,
        gpus=(where.nodes + where.rollout_nodes) * GPUS_PER_NODE,
    )


def cadence(step: float) -> int:
    """Steps between checkpoints so that a kill costs at most `LOST` seconds, or one step where that is longer.

    Example:
        >>> cadence(100.0), cadence(4000.0)
        (18, 1)
    """
    return max(1, int(LOST // step))


def patient(titan: Torchtitan, vllm: Vllm, moved: Step, assigned: Collection[str] = ()) -> tuple[Torchtitan, Vllm]:
    """Settings whose time-outs and cadence follow from the estimates; `assigned` keys stay, if they are long enough.

    A server is waited for `SLACK` times as long as its longest response takes, and no less than the model's settings
    say. A rank waits for the first one `SLACK` times as long as a rollout takes, and for a server that has to be
    started anew in the middle of it: so it is the first rank that names the cause.

    Raises:
        ConfigError: an assigned time-out is below what is estimated.
    """
    server = float(max(vllm.timeout, _minutes(SLACK * moved.response)))
    timeouts = {"vllm.timeout": vllm.timeout, "torchtitan.timeout": titan.timeout}
    least = {"vllm.timeout": moved.response, "torchtitan.timeout": moved.rollout}
    for key in timeouts.keys() & set(assigned):
        if timeouts[key] < least[key]:
            what = "a response" if key == "vllm.timeout" else "a rollout"
            raise ConfigError(
                f"{key} = {timeouts[key]:g} s is below the {least[key]:.0f} s that {what} may take at the stated "
                f"rates; raise it, or leave it out to get {SLACK:g} times that"
            )
    if "vllm.timeout" not in assigned:
        vllm = vllm.model_copy(update={"timeout": server})
    changes: dict[str, object] = {}
    if "torchtitan.timeout" not in assigned:
        changes["timeout"] = float(_minutes(SLACK * moved.rollout + vllm.timeout))
    if "torchtitan.checkpoint_every" not in assigned:
        changes["checkpoint_every"] = cadence(moved.seconds)
    return titan.model_copy(update=changes), vllm


def seconds(text: str) -> int:
    """Seconds of a time as SLURM has it: minutes, minutes:seconds, hours:minutes:seconds, days-hours:minutes:seconds.

    Raises:
        ConfigError: it is none, or no time at all.

    Example:
        >>> seconds("90"), seconds("24:00:00"), seconds("2-12")
        (5400, 86400, 216000)
    """
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d{1,2}))?(?::(\d{1,2}))?", text)
    if match is None:
        raise ConfigError(f"--time must look like 24:00:00 or 2-12:00:00, got {text!r}")
    days, *rest = match.groups()
    parts = [int(one) for one in rest if one is not None]
    scale = (3600, 60, 1) if days is not None or len(parts) == 3 else (60, 1)
    total = 86_400 * int(days or 0) + sum(a * b for a, b in zip(parts, scale, strict=False))
    if total == 0:
        raise ConfigError(f"--time must be above 0, got {text!r}")
    return total


def clock(seconds: float) -> str:
    """Seconds as SLURM writes them.

    Example:
        >>> clock(5400), clock(216000)
        ('1:30:00', '2-12:00:00')
    """
    days, rest = divmod(int(seconds), 86_400)
    time = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{time.zfill(8)}" if days else time


def _minutes(seconds: float) -> int:
    """Whole minutes that hold these seconds, in seconds."""
    return 60 * math.ceil(seconds / 60)
