"""Whether the two engines that `[sim]` describes compute differently, and the parts of a recipe that are idle then."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.training.inert import inert_parts
from firstorder.sim.config import Sim
from firstorder.sim.model import noise
from firstorder.sim.model.chunks import chunked_step
from firstorder.sim.model.policy import Model, initial_weights, load
from firstorder.sim.sampling.sequences import score
from firstorder.sim.tasks import task_of

from .scene import engines

SEQUENCES, TOKENS, PROMPTS = 64, 6, 4  # of the probe


def inert(recipe: Recipe, sim: Sim, *, stale: bool, moved: bool | None = None) -> list[str]:
    """The parts of a recipe that cannot act, one sentence each.

    Args:
        recipe: the method.
        sim: the two engines.
        stale: θ differs from θ_old at some update.
        moved: θ differs from the reference at some update; None where the schedule says it.
    """
    return inert_parts(recipe, stale=stale, mismatch=mismatch(sim), moved=moved)


@lru_cache
def mismatch(sim: Sim) -> bool:
    """Whether the engines give any token of random sequences another log-prob, by a bit.

    Settings alone do not say it: a scale that a kind does not read changes nothing, nor does the order of one gate.
    """
    if sim.reading_noise or (sim.truncates and sim.sampling_mask == "ignored"):
        return True
    seed = torch.zeros(1, dtype=torch.int64)
    weights, arithmetics = initial_weights(sim, seed), engines(sim, seed)
    with torch.no_grad():
        pi, mu = (_said(load(weights, arithmetic, sim), sim) for arithmetic in (arithmetics.pi, arithmetics.mu))
    return not torch.equal(pi, mu)


def _said(engine: Model, sim: Sim) -> Tensor:
    """Log-probs at the tokens of random sequences, or at the contexts of a few prompts where these are all there is."""
    if sim.carries:
        keys = noise.mix(torch.arange(SEQUENCES * TOKENS)).view(1, SEQUENCES, TOKENS)
        return score(engine, keys % sim.vocab).logp
    table = task_of(sim).contexts(torch.arange(min(sim.prompts, PROMPTS)))
    return chunked_step(engine, None, table.features, table.keys, None).logp
