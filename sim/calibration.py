"""The calibrated cold start: taught at every context, then made as sharp as earns a given value.

Shapes: M members, S contexts, F features, V vocabulary.

1. Supervised learning of a distribution that is known at every context, so that nothing is drawn:

    loss = - mean over the contexts taught of Σ_y target(y|c) · log π(y|c)

2. One factor on the output head of each member, found so that J(π) at the horizon is `sim.coldstart_value`. A factor
   sharpens every distribution as a lower temperature would. log(-log J) is close to linear in it where what is wrong is
   rare, so that few evaluations of J find it.

Both in exact arithmetic, whatever engines follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from firstorder.core import progress
from firstorder.core.errors import ConfigError, NotFiniteError
from firstorder.core.method.recipe import Optimizer

from . import optimizer
from .config import Numerics, Sim
from .model.chunks import chunked_step
from .model.numerics import arithmetic
from .model.policy import Weights, flatten, gradient, initial_weights, leaves, load, unflatten
from .tasks.chain import Chain, Lesson
from .tasks.contexts import Contexts
from .tasks.value import value

Gap = Callable[[Tensor], Tensor]
Value = Callable[[Tensor, Contexts, int], Tensor]
LARGEST = 2.0**10  # of a factor: a head a thousand times as large is as good as greedy
TOLERANCE = 1e-9  # relative, of J; the rounding of a million steps is less


def calibrated(sim: Sim, seeds: Tensor) -> Weights:
    """The weights of each member after both steps.

    Raises:
        ConfigError: no factor reaches the value.
        NotFiniteError: the weights are not finite.
    """
    task = Chain(sim)
    weights = _taught(sim, seeds, task)
    measured = torch.arange(sim.prompts)
    contexts = task.contexts(measured)
    with torch.no_grad():
        logp = _logp(sim, seeds, weights, contexts.features, contexts.keys)
        factor = sharpened(logp, contexts, task.lesson(measured), sim)
    return weights | {"head": weights["head"] * factor[:, None, None]}


def _taught(sim: Sim, seeds: Tensor, task: Chain) -> Weights:
    """Random weights after `sim.coldstart_steps` of supervised learning on all problems."""
    rows = torch.arange(task.size)
    contexts, lesson = task.contexts(rows), task.lesson(rows)
    taught = lesson.good.any(-1)
    features, keys, target = (
        contexts.features[taught],
        contexts.keys[taught],
        lesson.target(sim.taught)[taught],
    )
    weights = initial_weights(sim, seeds)
    settings = optimizer.settings([Optimizer(lr=sim.coldstart_lr)] * len(seeds))
    vector = flatten(weights)
    state = optimizer.start(vector)
    for _ in progress.steps("cold start", range(sim.coldstart_steps)):
        theta = leaves(unflatten(vector, weights))
        loss = -(target * _logp(sim, seeds, theta, features, keys)).sum((-1, -2)) / len(target)
        slope, _ = optimizer.clip(gradient(loss.sum(), theta), settings)
        vector, state = optimizer.step(vector, slope, state, settings)
    if not torch.isfinite(vector).all():
        raise NotFiniteError("the weights are not finite after the cold start; lower sim.coldstart_lr")
    return unflatten(vector, weights)


def _logp(sim: Sim, seeds: Tensor, weights: Weights, features: Tensor, keys: Tensor) -> Tensor:
    """`[M, S, V]` nats, in exact arithmetic."""
    model = load(weights, arithmetic(Numerics(), seeds), sim)
    return chunked_step(model, None, features, keys, None).logp


def sharpened(logp: Tensor, contexts: Contexts, lesson: Lesson, sim: Sim, value: Value = value) -> Tensor:
    """The factor on the logits of each member, `[M]`, at which J is `sim.coldstart_value`.

    Args:
        logp: `[M, S, V]` nats at factor 1.
        contexts: of the measured problems.
        lesson: what was taught at them.
        sim: value and horizon.
        value: J `[M]` of log-probs, contexts and horizon.

    Raises:
        ConfigError: no factor reaches the value.
    """

    def gap(factor: Tensor) -> Tensor:
        """log(-log J) less what it should be: positive where J is too low, infinite where it is 0 or 1."""
        found = value((factor[:, None, None] * logp).log_softmax(-1), contexts, sim.horizon).clamp(max=1.0)
        return (-found.log()).log() - math.log(-math.log(sim.coldstart_value))

    near, far = torch.ones(2, len(logp), dtype=torch.float64)
    gap_near = gap_far = gap(far)
    low = gap_far > 0
    while (going := (gap_far > 0) == low).any():
        if ((far > LARGEST) | (far < 1 / LARGEST)).any():
            raise _unreached(gap_far, low, logp, lesson, sim)
        near, gap_near = torch.where(going, far, near), torch.where(going, gap_far, gap_near)
        far = torch.where(going, torch.where(low, 2 * far, far / 2), far)
        gap_far = gap(far)
    return _root(gap, near, gap_near, far, gap_far, math.log(sim.coldstart_value))


def _root(gap: Gap, a: Tensor, gap_a: Tensor, b: Tensor, gap_b: Tensor, level: float) -> Tensor:
    """The root of `gap` between a and b, `[M]`, by the Illinois rule, a bisection where an end is infinite.

    A member that has arrived stays where it is, so that it is the same alone and in any ensemble.
    """
    while True:
        arrived = (level * torch.expm1(gap_b)).abs() <= TOLERANCE  # log J less `level`
        if arrived.all():
            return b
        secant = b - gap_b * (b - a) / (gap_b - gap_a)
        sound = torch.isfinite(gap_a) & torch.isfinite(gap_b)
        c = torch.where(arrived, b, torch.where(sound, secant, (a + b) / 2))
        gap_c = gap(c)
        crossed = (gap_c > 0) != (gap_b > 0)
        a, gap_a = torch.where(crossed, b, a), torch.where(crossed, gap_b, gap_a / 2)
        b, gap_b = c, gap_c


def _unreached(gap: Tensor, low: Tensor, logp: Tensor, lesson: Lesson, sim: Sim) -> ConfigError:
    """How far the first member gets that does not reach the value, and which key to raise."""
    member = int(((gap > 0) == low).long().argmax())
    found = sim.coldstart_value ** math.exp(gap[member])
    if not low[member]:
        return ConfigError(
            f"sim.coldstart_value = {sim.coldstart_value:g} is less than the {found:.3g} that a policy earns which "
            "says every token equally often; raise sim.coldstart_value or sim.horizon"
        )
    likeliest = lesson.good.gather(-1, logp[member].argmax(-1, keepdim=True))
    return ConfigError(
        f"sim.coldstart_value = {sim.coldstart_value:g} is out of reach: the sharpest policy earns {found:.3g}, for a "
        f"right token is the likeliest at {int(likeliest.sum())} of the {int(lesson.good.any(-1).sum())} contexts "
        "taught; raise sim.coldstart_steps, sim.coldstart_lr or sim.width"
    )
