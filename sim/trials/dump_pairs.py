"""Engine pairs that dumps are drawn from: policies from nearly certain to nearly uniform, engines from bf16 to noise.

Shapes: K draws of the rollout engine, S contexts, V vocabulary, N layers, E experts a token.

A pair is tabulated once: what each engine says at every context. A dump is then walks over the table, so that ten
thousand tokens take milliseconds, and what was sampled from is known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.routing import Replay
from firstorder.core.settings.toml import build, read
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import train
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.model.chunks import chunked_step
from firstorder.sim.model.numerics import arithmetic
from firstorder.sim.model.policy import Model, Step, Weights, load
from firstorder.sim.model.readings import engine
from firstorder.sim.tasks import task_of
from firstorder.sim.tasks.contexts import Contexts
from firstorder.sim.tasks.task import SimTask
from firstorder.sim.training.backend import SimBackend

KEPT = 512  # pairs and weights that are held for the next dump
PROMPTS = 16


def _chain(**settings: Any) -> Sim:
    base: dict[str, Any] = {
        "world": "graph",
        "task": "chain",
        "prompts": PROMPTS,
        "positions": 8,
        "horizon": 512,
        "shared": 0.8,
        "evaluate_every": 0,
    }
    return Sim(**base | settings)


POLICIES: dict[str, Sim] = {
    "uncertain": _chain(vocab=64, right=4, recovery=8, sharpness=1.0),
    "usual": _chain(vocab=64, right=4, recovery=8, sharpness=2.5),
    "peaked": _chain(vocab=32, right=3, recovery=4, sharpness=5.0, experts=16, top_k=4),
    "sharp": _chain(vocab=16, right=2, recovery=2, sharpness=12.0, layers=4),
    "taught": _chain(
        vocab=16, right=2, tail=1.0, width=24, coldstart="calibrated", coldstart_value=0.5, coldstart_steps=200
    ),
    "turns": _chain(vocab=24, right=3, recovery=3, sharpness=4.0, feedback=True, turn_length=8, positions=4),
    "answers": _chain(vocab=32, right=4, recovery=4, sharpness=2.0, ending="answer", thinking=2),
}
"""Policies by how sure they are; an entropy from 4 nats to 0.01."""

TREES: dict[str, Sim] = {
    "sums": Sim(vocab=12, horizon=8, prompts=16, sharpness=2.0, evaluate_every=0),
    "guesses": Sim(task="guess", vocab=12, horizon=9, turn_length=3, prompts=16, sharpness=4.0, evaluate_every=0),
}
"""Policies that carry a state, on responses of a handful of tokens, of one turn and of several."""

ENGINES: dict[str, tuple[Numerics, Numerics]] = {
    "exact": (Numerics(), Numerics()),
    "noise-0.003": (Numerics(kind="noise", scale=0.003), Numerics()),
    "noise-0.03": (Numerics(kind="noise", scale=0.03), Numerics()),
    "noise-0.1": (Numerics(kind="noise", scale=0.1), Numerics()),
    "noise-0.3": (Numerics(kind="noise", scale=0.3), Numerics()),
    "fresh-0.01": (Numerics(kind="noise", scale=0.01, fresh=True), Numerics()),
    "fresh-0.03": (Numerics(kind="noise", scale=0.03, fresh=True), Numerics()),
    "fresh-0.1": (Numerics(kind="noise", scale=0.1, fresh=True), Numerics()),
    "head-0.03": (Numerics(kind="noise", scale=0.03, head_scale=0.03, fresh=True), Numerics()),
    "bf16": (Numerics(kind="bf16"), Numerics()),
    "bf16-split": (Numerics(kind="bf16"), Numerics(kind="split", accumulate="bf16")),
    "bf16-fp16": (Numerics(kind="bf16"), Numerics(kind="fp16")),
    "fp16": (Numerics(kind="fp16"), Numerics()),
    "fp8": (Numerics(kind="fp8"), Numerics(kind="bf16")),
    "fp8-block": (Numerics(kind="fp8", granularity="block"), Numerics(kind="bf16")),
    "int8": (Numerics(kind="int8"), Numerics(kind="bf16")),
    "split-fp32": (Numerics(kind="split", accumulate="float32"), Numerics()),
    "batch": (Numerics(kind="batch"), Numerics()),
    "gate-order": (Numerics(kind="gate_order"), Numerics()),
}
"""(rollout, trainer)."""
DRAWS = 8  # noises of an engine that is drawn at every token


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What is sampled from and what is written of every token; a fault is another of these tables.

    Args:
        sim: the sizes.
        task, contexts: where tokens lead.
        sampled: float64 `[K, S, V]` nats, what tokens are drawn from.
        logp_mu, logp_old: `[K, S, V]` nats, what is written.
        live: `[K, S, V]` nats, the trainer's log-probs without replay.
        entropy: `[K, S]` nats, of the trainer's distribution as it is written.
        routes, routes_old: int16 `[K, S, N, E]`, of both engines, routing live.
    """

    sim: Sim
    task: SimTask
    contexts: Contexts
    sampled: Tensor
    logp_mu: Tensor
    logp_old: Tensor
    live: Tensor
    entropy: Tensor
    routes: Tensor
    routes_old: Tensor

    @property
    def draws(self) -> int:
        """K."""
        return len(self.sampled)


def settings(policy: str, engines: str) -> Sim:
    """The `[sim]` section of a policy and its engines, both by name."""
    mu, pi = ENGINES[engines]
    return (POLICIES | TREES)[policy].model_copy(update={"numerics": mu, "training_numerics": pi, "draws": DRAWS})


@lru_cache(maxsize=KEPT)
def pair(policy: str, engines: str, seed: int, replay: str = "disabled") -> Pair:
    """A pair whose engines hold the same weights.

    Args:
        policy: a key of `POLICIES`.
        engines: a key of `ENGINES`.
        seed: of the weights and of the noise.
        replay: disabled or R3: whether the trainer's log-probs are those of the rollout engine's routes.
    """
    weights = start(policy, seed)
    return between(settings(policy, engines), seed, weights, weights, replay)


@torch.no_grad()
def between(sim: Sim, seed: int, of_mu: Weights, of_pi: Weights, replay: str = "disabled") -> Pair:
    """A pair of engines that hold the weights that each is given."""
    seeds = torch.tensor([seed])
    task = task_of(sim)
    contexts = task.contexts(torch.arange(sim.training_prompts))
    mu = _run(engine(sim, of_mu, arithmetic(sim.numerics, seeds)), contexts)
    trainer = arithmetic(sim.training_numerics, seeds)
    live = _run(load(of_pi, trainer, sim), contexts)
    used = live
    if replay == "R3":
        draws = len(mu.logp)
        copies = {name: w.expand(draws, *w.shape[1:]) for name, w in of_pi.items()}
        used = _run(load(copies, trainer.repeat(draws), sim), contexts, Replay(ids=mu.ids))
    shape = mu.logp.shape
    return Pair(
        sim=sim,
        task=task,
        contexts=contexts,
        sampled=mu.logp,
        logp_mu=mu.logp,
        logp_old=used.logp.expand(shape),
        live=live.logp.expand(shape),
        entropy=entropy(used.logp).expand(shape[:2]),
        routes=mu.ids,
        routes_old=live.ids.expand(mu.ids.shape),
    )


def entropy(logp: Tensor) -> Tensor:
    """Of distributions `[..., V]`, nats."""
    return -torch.where(logp > -torch.inf, logp.exp() * logp, 0.0).sum(-1)


def beside(one: Pair, other: Pair) -> Pair:
    """Two pairs as two draws of one, which stand in turn for the rollout engine."""

    def both(name: str) -> Tensor:
        return torch.cat([getattr(one, name), getattr(other, name)])

    return replace(
        one,
        sampled=both("sampled"),
        logp_mu=both("logp_mu"),
        logp_old=both("logp_old"),
        live=both("live"),
        entropy=both("entropy"),
        routes=both("routes"),
        routes_old=both("routes_old"),
    )


@lru_cache(maxsize=KEPT)
def start(policy: str, seed: int) -> Weights:
    """What a policy starts from."""
    return starting_weights((POLICIES | TREES)[policy], torch.tensor([seed]))


@lru_cache(maxsize=KEPT)
def trained(policy: str, seed: int, steps: int, lr: float = 0.003) -> Weights:
    """The weights after so many optimiser steps of MiniRL, sampled batches of 8 prompts with 8 responses each."""
    sim = POLICIES[policy].model_copy(update={"horizon": 64, "numerics": Numerics(), "training_numerics": Numerics()})
    schedule = {"steps": steps, "prompts": 8, "group_size": 8, "minibatches": 1}
    recipe = build(Recipe, {**read("minirl"), "schedule": schedule, "optimizer": {"lr": lr}})
    arms = (Arm(recipe=recipe, members=1),)
    backend = SimBackend(sim, arms, torch.tensor([seed]))
    backend.weights = backend.rollout_weights = start(policy, seed)
    train(arms, backend)
    return backend.weights


def corrupted(weights: Weights, layer: int, expert: int) -> Weights:
    """Weights with one expert of a layer overwritten by its neighbour, as where a transfer wrote to the wrong place."""
    down = weights["down"].clone()
    down[:, layer, expert] = weights["down"][:, layer, (expert + 1) % down.shape[2]]
    return weights | {"down": down}


def rounded_router(weights: Weights) -> Weights:
    """Weights whose routers went through bf16."""
    return weights | {"router": weights["router"].bfloat16().double()}


def tempered(logp: Tensor, temperature: float) -> Tensor:
    """The distributions `[..., V]` at another temperature."""
    return (logp / temperature).log_softmax(-1)


def nucleus(logp: Tensor, mass: float) -> Tensor:
    """The fewest tokens of at least so much mass, renormalised; -inf elsewhere (arXiv 1904.09751)."""
    ordered, place = logp.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, place, before < mass)
    return _among(logp, kept)


def largest(logp: Tensor, count: int) -> Tensor:
    """The so many likeliest tokens, renormalised; -inf elsewhere."""
    kept = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, logp.topk(count, -1).indices, True)
    return _among(logp, kept)


def _among(logp: Tensor, kept: Tensor) -> Tensor:
    inside = torch.where(kept, logp, -torch.inf)
    return inside - inside.logsumexp(-1, keepdim=True)


def _run(model: Model, contexts: Contexts, replay: Replay | None = None) -> Step:
    return chunked_step(model, None, contexts.features, contexts.keys, replay)
