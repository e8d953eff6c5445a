"""The real engine pair as a training backend: torchtitan trains, vLLM samples, the loop of
`core.training.loop` runs both.

Shapes: B responses of L positions, M MoE layers, K experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from firstorder.core.audit.disagreement import distribution
from firstorder.core.errors import DataError
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.terms import quantities
from firstorder.core.quantities import Moments, Quantity
from firstorder.core.routing import Replay, replay_of
from firstorder.core.tasks import RANGE, Task
from firstorder.core.training import backend as shared
from firstorder.core.training import kept
from firstorder.core.training import replay as replays
from firstorder.core.training.agreement import agreement
from firstorder.core.training.backend import Scored, WeightFn
from firstorder.core.training.batch import RolloutBatch, check_rewards

from .conversation import converse
from .keys import key, shuffled
from .ranks import broadcast_from_rank0, is_rank0
from .rollouts import Engine, collate

if TYPE_CHECKING:
    from .tasks.registry import Tasks
    from .torchtitan.trainer import Scores, Trainer


QUANTITIES: dict[str, Quantity] = {
    "eval/reward": Quantity(
        formula="mean R of one response of mu to each held-out prompt, after the step",
        unit="reward",
        source="firstorder",
    ),
    "rollout/emulated": Quantity(
        formula="1 where fp8 weights are emulated in vLLM, as on a CPU; else not logged",
        unit="1",
        source="firstorder",
    ),
    "route/gates_apart": Quantity(
        formula="|gate of mu - gate of pi_old| of an expert, mean over the (token, layer) at which both have the same "
        "set; logged where the rollout engine's gates are replayed",
        unit="1",
        source="firstorder",
    ),
    "route/turn_flip_rate": Quantity(
        formula="share of (token, layer) of earlier turns whose expert set is another in the request of a later turn",
        unit="share of (token, layer)",
        source="firstorder",
    ),
}
"""What a pair of engines reports beside the loop."""


def gates_apart(batch: RolloutBatch, live: Scores) -> tuple[Tensor, Tensor]:
    """Sum over rows with the same expert set in both engines, and their number; see `QUANTITIES`."""
    assert batch.routes is not None
    assert batch.gates is not None
    assert live.gates is not None
    mu, pi = batch.routes.sort(-1), live.routes.sort(-1)
    same = (mu.values == pi.values).all(-1) & (mu.values >= 0).all(-1)
    apart = (batch.gates.gather(-1, mu.indices) - live.gates.gather(-1, pi.indices)).abs().double().mean(-1)
    return (apart * same).sum(), same.double().sum()


class StaleWeightsError(DataError):
    """The rollout engine and the trainer do not compute the same log-probs."""


class DistributionError(DataError):
    """The rollout engine samples from another distribution than the one that π is scored under."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run needs to know besides its engines.

    Args:
        recipe: method and schedule.
        seed: of prompts and samples.
        evaluate_every: steps between evaluations; 0 for none.
        evaluate_prompts: held-out prompts of one.
        probe_prompts: responses that check a weight sync.
        probe_limit: largest mean |Δ log p| of a probe, nats.
        longest: tokens of a prompt, or of all that precedes a later turn.
    """

    recipe: Recipe
    seed: int
    evaluate_every: int
    evaluate_prompts: int
    probe_prompts: int
    probe_limit: float
    longest: int


class EnginePair:
    """Trainer and rollout engine of one run.

    Args:
        trainer: the training engine.
        engine: the rollout engine.
        tasks: what is learnt, and what is evaluated.
        settings: seed, evaluations and probes of the run.
    """

    mismatch = True  # two engines with kernels of their own

    def __init__(self, trainer: Trainer, engine: Engine, tasks: Tasks, settings: RunSettings) -> None:
        self.trainer, self.engine, self.tasks, self.settings = trainer, engine, tasks, settings
        self._next = 0  # the global step that follows
        self._synced = False  # whether the rollout engine was given weights of the trainer
        self._flips = (0, 0)  # of the last rollout, between the requests of its turns

    @property
    def quantities(self) -> dict[str, Quantity]:
        """What every reported name means."""
        layers = self.trainer.shape.num_hidden_layers
        scaled = shared.SCALED if self.settings.recipe.optimizer.step_scale else {}
        rows = shared.layer_flips(layers) | replays.quantities(layers) | kept.QUANTITIES
        return shared.QUANTITIES | rows | QUANTITIES | scaled | quantities([self.settings.recipe])

    @property
    def experts(self) -> int:
        """Experts of an MoE layer."""
        return self.trainer.shape.num_experts

    def rollout(self, step: int) -> RolloutBatch:
        """The prompts of a step, each answered G times by μ_old."""
        schedule = self.settings.recipe.schedule
        numbers = [step * schedule.prompts + i for i in range(schedule.prompts) for _ in range(schedule.group_size)]
        rows = [shuffled(number, self.tasks.train.size, self.settings.seed) for number in numbers]
        seeds = [key(self.settings.seed, "rollout", step, i) for i in range(len(numbers))]
        batch = self._sample(self.tasks.train, rows, seeds, numbers)
        self._next = step + 1
        return batch

    def score(self, batch: RolloutBatch) -> tuple[Scored, Moments]:
        """π_old on the batch: once live, which records R2's experts and the flips, and once more where R3 replays."""
        replaying = self.settings.recipe.router_replay
        live = self.trainer.score(batch, gates=replaying.gates == "replayed")
        replay = self._replay(live, batch)
        used = self.trainer.score(batch, replay) if replaying.mode == "R3" else live
        differs = replays.differing(batch, live.routes)
        logp_ref = None
        if self.settings.recipe.terms.reference_kl:
            logp_ref = self.trainer.score_reference(batch, replay).where(batch.mask, 0.0)
        scored = Scored(
            batch=batch,
            logp_old=used.logp.where(batch.mask, 0.0),
            replay=replay,
            logp_ref=logp_ref,
            differs=differs,
            routes=live.routes,
            entropy=used.entropy,
        )
        moments = agreement(batch, live.routes, live.margin, used.logp, used.entropy)
        moments |= kept.masked(batch.kept, batch.mask, used.outside)
        if self.engine.emulated:
            one = torch.ones((), dtype=torch.float64)
            moments["rollout/emulated"] = one, one
        if live.gates is not None and replaying.mode == "R3":
            moments["route/gates_apart"] = gates_apart(batch, live)
        if self._flips[1]:
            apart, count = torch.tensor(self._flips, dtype=torch.float64)
            moments["route/turn_flip_rate"] = apart, count
        return scored, moments

    def _replay(self, live: Scores, batch: RolloutBatch) -> Replay | None:
        """What the recipe gives to replay.

        Raises:
            DataError: the rollout engine's gates are asked for, and it sent none.
        """
        replaying = self.settings.recipe.router_replay
        routes = replay_of(replaying.mode, live.routes, batch.routes)
        if routes is None:
            return None
        gates = None
        if replaying.gates == "replayed":
            gates = replay_of(replaying.mode, live.gates, batch.gates)
            if gates is None:
                raise DataError(
                    "router_replay.gates = replayed needs gate weights beside the routes, and the rollout engine sent "
                    "none; set router_replay.gates = live"
                )
        return Replay(ids=routes, gates=gates, **replays.rules([replaying]))

    def update(self, minibatch: Scored, weight_fn: WeightFn) -> Moments:
        """One optimiser step of the trainer."""
        updated = self.trainer.update(minibatch, weight_fn)
        one = torch.ones((), dtype=torch.float64)
        moments = {"update/grad_norm": (one * updated.grad_norm, one), "update/loss": (one * updated.loss, one)}
        if updated.step_scale is not None:
            moments["update/step_scale"] = one * updated.step_scale, one
        rows = {name: torch.tensor(each, dtype=torch.float64) for name, each in updated.rows.items()}
        return moments | replays.replayed(rows, minibatch.batch.tokens.numel())

    def sync_weights(self) -> None:
        """Send the trainer's weights to the rollout engine and see by a probe that it uses them.

        Raises:
            StaleWeightsError: the engines' log-probs differ by more than the limit.
        """
        weights = self.trainer.weights()  # gathered by all ranks, sent by the first
        sent = [pair for pair in weights if is_rank0()]
        broadcast_from_rank0(lambda: self.engine.sync(sent, self._next))
        self._synced = True
        self.check()

    def check(self) -> None:
        """Sample a few responses and compare their log-probs with the trainer's.

        Raises:
            DistributionError: they differ by more than the limit, and another temperature or truncation explains it.
            StaleWeightsError: they differ, and nothing but other weights does.
        """
        batch = self.held_out("probe", self.settings.probe_prompts)
        mu, pi = batch.logp_mu[batch.mask], self.trainer.score(batch).logp[batch.mask]
        apart = float((pi - mu).abs().mean())
        if apart <= self.settings.probe_limit:
            return
        when = (
            f"after the weight sync of step {self._next}" if self._synced else "at the start, before any weight sync,"
        )
        what = (
            f"{when} vLLM's log-probs of its samples and the trainer's differ by {apart:.3g} nats a token, and "
            f"vllm.probe_limit is {self.settings.probe_limit:g}: "
        )
        why = distribution(mu, lambda at: self._at(at, batch)[batch.mask], self.trainer.temperature)
        if why is not None:
            over = "without truncation" if batch.kept is None else "over the tokens that it says were kept"
            raise DistributionError(
                f"{what}vLLM samples from another distribution than at temperature {self.trainer.temperature:g} "
                f"{over}: {why}; see how it was started"
            )
        if self._synced:
            raise StaleWeightsError(f"{what}vLLM holds other weights; restart it with --resume")
        raise StaleWeightsError(
            f"{what}vLLM computes another model than {self.trainer.settings.model} holds; start it with that folder, "
            "or raise vllm.probe_limit for a lower precision"
        )

    def _at(self, temperature: float, batch: RolloutBatch) -> Tensor:
        """The trainer's log-probs of a batch at another temperature."""
        before = self.trainer.temperature
        self.trainer.temperature = temperature
        try:
            return self.trainer.score(batch).logp
        finally:
            self.trainer.temperature = before

    def evaluate(self, step: int) -> dict[str, Tensor]:
        """Mean reward on held-out prompts, every `evaluate_every` steps and after the last."""
        every = self.settings.evaluate_every
        if not every or (step % every and step != self.settings.recipe.schedule.steps):
            return {}
        return {"eval/reward": self.held_out("evaluate", self.settings.evaluate_prompts).rewards.mean()}

    def held_out(self, purpose: str, prompts: int) -> RolloutBatch:
        """One response to each of the first held-out prompts, as many as there are; another purpose, other seeds."""
        rows = list(range(min(prompts, self.tasks.held_out.size)))
        return self._sample(self.tasks.held_out, rows, [key(self.settings.seed, purpose, i) for i in rows], rows)

    def state(self) -> dict[str, Any]:
        """Where the trainer's distributed checkpoint is; everything random is a hash of (seed, step)."""
        self.trainer.save(self._next)
        return {"step": self._next, "shape": vars(self.trainer.shape)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            DataError: it is of a model of other sizes.
        """
        self._next = int(state["step"])
        for name, size in vars(self.trainer.shape).items():
            if state["shape"].get(name) != size:
                raise DataError(
                    f"the checkpoint of step {self._next} is of a model with {name} = {state['shape'].get(name)}, and "
                    f"torchtitan.model has {size}; put the model back, or start again in a new --out"
                )
        self.trainer.load(self._next)
        self.sync_weights()

    def _sample(self, task: Task, rows: list[int], seeds: list[int], groups: list[int]) -> RolloutBatch:
        """One response of μ to each row of a task, verified; `groups` numbers the prompts."""
        sampled = broadcast_from_rank0(lambda: converse(self.engine, task, rows, seeds, self.settings.longest))
        shape = self.trainer.shape
        self._flips = sampled.flips
        sizes = shape.num_hidden_layers, shape.num_experts_per_tok, shape.num_experts
        batch = collate(sampled.prompts, sampled.responses, sampled.rewards.tolist(), groups, *sizes)
        check_rewards(batch, *RANGE)
        return batch
