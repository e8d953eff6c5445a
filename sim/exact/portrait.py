"""A tiny policy to look at: what every engine and every replay says of each prefix, as plain numbers.

Shapes: N contexts, V vocabulary, L MoE layers, K experts a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError
from firstorder.core.routing import flips
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim

from .edges import Pass
from .scene import MODES, Scene, build, engines, grow
from .staleness import path
from .tree import Tree

Experts = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A prefix of a response, at which a token is sampled.

    Args:
        tokens: of the response so far.
        rewards: what the response earns if it ends with each token, `[V]`; None where it goes on after it.
        reached: how likely a response of μ_old comes here.
        logp: log-probs of the next token, nats, `[V]` each: `old` and `mu` of the engines at rollout, and of π_θ by
            replay mode.
        experts: those of the prefix's last token, ascending, `[L, K]` each: `old`, `mu`, and π_θ's own choice, `theta`.
        flipped: whether π_old and μ_old choose other experts, `[L]`.
    """

    tokens: list[int]
    rewards: list[float | None]
    reached: float
    logp: Mapping[str, list[float]]
    experts: Mapping[str, Experts]
    flipped: list[bool]


def portrait(sim: Sim) -> list[Node]:
    """Every prefix of the responses to the one measured prompt, in order of (parent, token).

    Raises:
        ConfigError: there are several prompts, contexts merge, or μ is drawn anew at every call.
    """
    if sim.prompts != 1 or sim.world != "tree" or sim.random_readings or sim.numerics.kind == "batch":
        raise ConfigError("a portrait takes sim.world = tree, sim.prompts = 1 and an engine that the context fixes")
    theta_old, arithmetics = starting_weights(sim, torch.tensor([sim.seed])), engines(sim, torch.arange(1))
    *_, theta = path(sim, arithmetics, theta_old, sim.staleness)
    world = grow(sim)
    scene = build(sim, world, arithmetics, theta_old, theta if sim.staleness else None, modes=MODES)
    assert isinstance(world, Tree)
    rewards, prefixes = _rewards(world), _prefixes(world)
    return [_node(scene, place, prefix, rewards[place]) for place, prefix in enumerate(prefixes)]


def _node(scene: Scene, place: int, tokens: list[int], rewards: list[float | None]) -> Node:
    old, mu = scene.old["disabled"], scene.mu_old
    passes = {"old": old, "mu": mu} | dict(scene.target)
    chosen = {"old": old, "mu": mu, "theta": scene.target["disabled"]}
    return Node(
        tokens=tokens,
        rewards=rewards,
        reached=float(scene.reached[0, place]),
        logp={name: _numbers(one.logp[0, place]) for name, one in passes.items()},
        experts={name: _experts(one, place) for name, one in chosen.items()},
        flipped=[bool(x) for x in flips(old.routes.contexts[0, place], mu.routes.contexts[0, place])],
    )


def _prefixes(tree: Tree) -> list[list[int]]:
    """The tokens of the response at each context."""
    level: list[list[int]] = [[]]
    found = [*level]
    for _ in tree.widths[1:]:
        level = [[*prefix, token] for prefix in level for token in range(tree.task.sim.first, tree.vocab)]
        found += level
    return found


def _rewards(tree: Tree) -> list[list[float | None]]:
    """What a response earns that ends with each token at each context; None where it goes on, `[N, V]`."""
    return [[None if end < 0 else float(tree.levels[end]) for end in row] for row in tree.shape.terminal.tolist()]


def _numbers(values: Tensor) -> list[float]:
    return [float(x) for x in values.detach()]


def _experts(one: Pass, place: int) -> Experts:
    return [sorted(int(x) for x in layer) for layer in one.routes.contexts[0, place]]
