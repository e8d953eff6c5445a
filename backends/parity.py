"""How far the rollout engine strays from the training engine at the same weights, with live routes and with R3."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from firstorder.core.finite import check_finite
from firstorder.core.method.recipe import Advantage, Recipe, Schedule
from firstorder.core.method.stats import TokenStats
from firstorder.core.quantities import means
from firstorder.core.routing import Replay
from firstorder.core.training import strata
from firstorder.core.training.agreement import agreement
from firstorder.core.training.batch import RolloutBatch
from firstorder.core.training.diagnostics import diagnose

from .checks import check
from .pair import EnginePair
from .session import open_pair
from .tasks.config import TaskSettings
from .tasks.registry import Tasks
from .torchtitan.config import Torchtitan
from .vllm.config import Vllm

WARM_UP = 8  # responses to held-out prompts, sampled before the clock starts


@dataclass(frozen=True, kw_only=True)
class Point:
    """One pair of engines to measure.

    Args:
        titan: the training engine.
        vllm: the rollout engine.
        task: where the prompts are from.
        prompts: of the task.
        responses: to each.
    """

    titan: Torchtitan
    vllm: Vllm
    task: TaskSettings
    prompts: int
    responses: int

    @property
    def recipe(self) -> Recipe:
        """What schedules the prompts; its method is not used."""
        return Recipe(
            advantage=Advantage(baseline="none"), schedule=Schedule(prompts=self.prompts, group_size=self.responses)
        )

    def check(self) -> Tasks:
        """The tasks; what cannot be opened is refused, see `checks.check`."""
        return check(self.recipe, self.titan, self.vllm, self.task)


def measure(point: Point) -> dict[str, Any]:
    """Open a pair and measure it; see `parity`.

    Raises:
        FirstOrderError: an engine refuses, or the rollouts are not usable.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return parity(open_pair(point.recipe, point.titan, point.vllm, point.check(), Path(scratch)))


def parity(pair: EnginePair) -> dict[str, Any]:
    """What a batch of rollouts says about two engines that hold the same weights.

    Returns:
        `tokens`, `reward`, `tokens_per_second` (response tokens, of sampling), `emulated`, `routes` (see
        `core.training.agreement`), and under `live` and `R3`, where π routes live or replays the experts that μ
        visited, the quantities of `core.training.diagnostics` with `mean_abs_d`, mean |log π - log μ| in nats, and
        `one_minus_ess`, the share of tokens that `token_eff_sample_size` loses.
    """
    pair.held_out("warm up", WARM_UP)
    started = time.perf_counter()
    batch = pair.rollout(0)
    seconds, tokens = time.perf_counter() - started, int(batch.mask.sum())
    live, replayed = (
        pair.trainer.score(batch),
        pair.trainer.score(batch, None if batch.routes is None else Replay(ids=batch.routes)),
    )
    sums = agreement(batch, live.routes, live.margin, live.logp, live.entropy)
    routes = means(sums) | strata.finalise(sums)
    measured = {
        "tokens": tokens,
        "reward": float(batch.rewards.mean()),
        "tokens_per_second": tokens / seconds,
        "emulated": pair.engine.emulated,
        "routes": {name: float(value) for name, value in routes.items()},
        "live": _distance(batch, live.logp),
        "R3": _distance(batch, replayed.logp),
    }
    check_finite(measured, "the weights of the model, or what the engines make of them, are not numbers")
    return measured


def _distance(batch: RolloutBatch, logp: Tensor) -> dict[str, float]:
    pi = logp.where(batch.mask, 0.0)
    stats = TokenStats(logp_theta=pi, logp_old=pi, logp_mu=batch.logp_mu, mask=batch.mask, advantage=batch.rewards)
    distance = {name: float(value) for name, value in diagnose(stats).items()}
    return distance | {
        "mean_abs_d": float((pi - batch.logp_mu)[batch.mask].abs().mean()),
        "one_minus_ess": 1.0 - distance["token_eff_sample_size"],
    }
