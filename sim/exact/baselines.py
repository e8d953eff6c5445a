"""The best baselines that a token can have, and how far the published ones are from them.

With the token ratio ρ_t = π_θ/μ as weight and nothing clipped, the update of a response under a baseline b is

    g_b = Σ_t (R - b_t) ρ_t s_t,      s_t = ∇ log π_θ(y_t|c_t),      Σ_a μ ρ s = 0 at every context

so that any b of the time, the prompt and the context leaves E[g_b] as it is, and parts of different tokens of
Σ_t b_t ρ_t s_t are orthogonal on average (they are a martingale's). What is left is one parabola for each value of b:

    E‖g_b‖² = E‖g_0‖² - 2 Σ C b + Σ A b²
    A = E[1{t, c} ρ_t² ‖s_t‖²],      C = E[1{t, c} R ⟨ρ_t s_t, Σ_u ρ_u s_u⟩]

and the best b of a class is Σ C / Σ A over what the class takes for one. arXiv 2602.07078 has E[R W_t] / E[W_t] in its
place, W_t = Σ_{u≤t} ρ_u² ‖s_u‖², and for ‖s‖² the square of the gradient by the logits, 1 - 2 π(a|c) + Σ_v π(v|c)².

Shapes: S contexts, V vocabulary, U distinct places that a context leads to, D directions, T horizon, X prompts;
one member.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .graph import Graph
from .moments import Factors, second_moment
from .scene import Mode, Scene


@dataclass(frozen=True, kw_only=True)
class Parabola:
    """E‖g_b‖² as a function of a baseline b `[T, S]`.

    Args:
        none: E‖g_0‖², without a baseline.
        slope: C, `[T, S]`.
        energy: A, `[T, S]`.
        earned: E[1{t, c} ρ_t² ‖s_t‖² R] and the same of the norm by the logits, `[2, T, S]`.
        proxy: A of the norm by the logits, `[T, S]`.
        owner: int64 `[S]`, the prompt of each context.
        values: E[R | t, c], `[T, S]`.
        came: P(c_t = c), `[T, S]`.
    """

    none: Tensor
    slope: Tensor
    energy: Tensor
    earned: Tensor
    proxy: Tensor
    owner: Tensor
    values: Tensor
    came: Tensor

    def square(self, b: Tensor) -> Tensor:
        """E‖g_b‖² of a baseline `[T, S]`."""
        return self.none - 2 * (self.slope * b).sum() + (self.energy * b.square()).sum()

    def best(self, of: str) -> Tensor:
        """The baseline `[T, S]` of least variance among those of a class: one number for each `prompt`, each `position`
        of each prompt, each `context`, or each `time` that a context is come to."""
        return _ratio(self._pooled(self.slope, of), self._pooled(self.energy, of))

    def mean(self, of: str) -> Tensor:
        """E[R | class], `[T, S]`: the value of a prompt, of a position, of a context."""
        return _ratio(self._pooled(self.came * self.values, of), self._pooled(self.came, of))

    def published(self, *, proxy: bool = False) -> Tensor:
        """E[R W_t] / E[W_t] of each position of each prompt, `[T, S]`."""
        norms = self.proxy if proxy else self.energy
        earned, weight = (self._pooled(x, "position").cumsum(0) for x in (self.earned[int(proxy)], norms))
        return _ratio(earned, weight)

    def _pooled(self, x: Tensor, of: str) -> Tensor:
        """Sums of `[T, S]` over what a class takes for one, where it is, `[T, S]`."""
        if of == "time":
            return x
        if of == "context":
            return x.sum(0).expand_as(x)
        by_prompt = torch.zeros(len(x), int(self.owner.max()) + 1, dtype=x.dtype).index_add_(1, self.owner, x)
        pooled = by_prompt if of == "position" else by_prompt.sum(0).expand_as(by_prompt)
        return pooled[:, self.owner]


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """0 where nothing is there to be divided by."""
    return torch.where(below > 0, above / below, 0.0)


def parabola(scene: Scene, mode: Mode, x: Tensor) -> Parabola:
    """E‖g_b‖² over the responses of μ_old, of the token ratio of a target.

    Args:
        scene: of one member, on a graph whose prompts share no context, whose μ_old records what it sampled from, and
            samples every token that π can say.
        mode: the target's replay.
        x: `[S, V, D]`, from `scores.directions` of it.
    """
    world = scene.world
    assert isinstance(world, Graph)
    assert world.owner is not None
    assert scene.readings is None
    target = scene.target[mode].logp.detach()
    mu, pi, said = scene.mu_old.logp[0].exp(), scene.met(target)[0].exp(), target[0].exp()
    energies = torch.where(mu > 0, pi * pi / mu, 0.0)  # μ leaves out what has no probability
    norms = torch.stack([x.square().sum(-1), 1 - 2 * said + said.square().sum(-1, keepdim=True)]) * energies
    walk = _walk(world, mu, pi, x)
    came, (value, ahead) = _came(walk), _ahead(walk)
    energy = came * norms.sum(-1)[:, None]
    earned = came * (world.branches.collapse(norms)[:, None] * ahead).sum(-1)
    every = Factors(hh=mu[None], bh=mu[None], bb=mu[None], wh=pi[None], wb=pi[None], ww=energies[None])
    worth = world.levels.square()[None, :, None].expand(-1, -1, world.prompts)
    return Parabola(
        none=second_moment(world, every, x, worth).sum() / world.prompts,
        slope=earned[0] + came * _with_later(walk, ahead) + _with_earlier(walk, came, ahead),
        energy=energy[0],
        proxy=energy[1],
        earned=earned,
        owner=world.owner,
        values=value,
        came=came,
    )


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """A graph for the recursions: `mass` `[S, U]` of each branch, `scores` `[S, U, D]`, Σ_a μ ρ s of its tokens, `to`
    int64 `[S, U]`, the context that it leads to, and whether it does, `inside`."""

    world: Graph
    mass: Tensor
    scores: Tensor
    to: Tensor
    inside: Tensor


def _walk(world: Graph, mu: Tensor, pi: Tensor, x: Tensor) -> _Walk:
    place = world.branches.place
    hot = one_hot(world.branches.which, place.shape[1]).double()
    scores = torch.einsum("sv,svd,svu->sud", pi, x, hot)
    to, mass = place.clamp(max=world.contexts - 1), world.branches.collapse(mu[None])[0]
    return _Walk(world=world, mass=mass, scores=scores, to=to, inside=place < world.contexts)


def _came(walk: _Walk) -> Tensor:
    """P(c_t = c), `[T, S]`."""
    flow = torch.where(walk.inside, walk.mass, 0.0)
    now = torch.zeros(len(flow), dtype=torch.float64)
    now.index_add_(0, walk.world.table.start, torch.full_like(walk.world.table.start, 1.0, dtype=now.dtype))
    came = [now / walk.world.prompts]
    for _ in range(walk.world.horizon - 1):
        moved = (came[-1][:, None] * flow).flatten()
        came.append(torch.zeros_like(now).index_add_(0, walk.to.flatten(), moved))
    return torch.stack(came)


def _ahead(walk: _Walk) -> tuple[Tensor, Tensor]:
    """E[R | t, c], `[T, S]`, and the same after each branch, `[T, S, U]`."""
    rewards, place = walk.world.table.rewards, walk.world.branches.place
    now, found = rewards[: len(walk.to)], []
    for _ in range(walk.world.horizon):
        after = torch.where(walk.inside, now[walk.to], rewards[place])
        now = (walk.mass * after).sum(-1)
        found.append((now, after))
    values, afters = zip(*reversed(found), strict=True)
    return torch.stack(values), torch.stack(afters)


def _with_later(walk: _Walk, ahead: Tensor) -> Tensor:
    """E[R ⟨ρ_t s_t, Σ_{u>t} ρ_u s_u⟩ | t, c], `[T, S]`."""
    flow, scores = (torch.where(walk.inside[..., None], x, 0.0) for x in (walk.mass[..., None], walk.scores))
    later, found = torch.zeros_like(walk.scores[:, 0]), []
    for after in reversed(ahead.unbind(0)):
        beyond = later[walk.to]
        found.append((scores * beyond).sum((-1, -2)))
        later = (walk.scores * after[..., None] + flow * beyond).sum(1)
    return torch.stack(found[::-1])


def _with_earlier(walk: _Walk, came: Tensor, ahead: Tensor) -> Tensor:
    """E[1{t, c} R ⟨ρ_t s_t, Σ_{u<t} ρ_u s_u⟩], `[T, S]`."""
    flow, scores = (torch.where(walk.inside[..., None], x, 0.0) for x in (walk.mass[..., None], walk.scores))
    earlier, found = torch.zeros_like(walk.scores[:, 0]), []
    for now, after in zip(came, ahead, strict=True):
        found.append(torch.einsum("sud,sd,su->s", walk.scores, earlier, after))
        moved = (flow * earlier[:, None] + scores * now[:, None, None]).flatten(0, 1)
        earlier = torch.zeros_like(earlier).index_add_(0, walk.to.flatten(), moved)
    return torch.stack(found)


def squares(curve: Parabola) -> dict[str, Tensor]:
    """E‖g_b‖² of every baseline that has a name: the values of a prompt and of a context, the published one with its
    norms and with those by the logits, and the best of each class."""
    named = {
        "b = 0": torch.zeros_like(curve.slope),
        "b = E[R | prompt]": curve.mean("prompt"),
        "b = E[R | context]": curve.mean("context"),
        "b published": curve.published(),
        "b published, by logits": curve.published(proxy=True),
        "b best of a prompt": curve.best("prompt"),
        "b best of a position": curve.best("position"),
        "b best of a context": curve.best("context"),
    }
    return {name: curve.square(b) for name, b in named.items()}
