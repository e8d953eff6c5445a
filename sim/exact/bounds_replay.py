"""Bounds on what replay does to a target, |J(π) - J(π^Rk)|, and on the whole error that it leaves.

For R in [0, 1] the difference of two policies' values is at most TV over whole responses. Enumerated, that is a sum;
where contexts merge it has none, for TV is not a product over tokens, and what a sum over contexts can say is:

    1 - BC  ≤  TV  ≤  √(1 - BC²),   Σ_t E TV_t,   √(Σ_t E KL_t / 2),   √(1 - exp(-Σ_t E KL_t)),   1 - (1 - max TV)^T

with BC = Σ_y √(π(y) π^Rk(y)), itself a product over tokens, and E under either policy. Beside them a sample of π^Rk
gives TV = E[max(0, 1 - Π π/π^Rk)] with an interval.

Shapes: M members, N contexts, V vocabulary, T horizon, B responses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bounds import Apart, apart, root
from .sampled import Interval, blocks, jackknife
from .scene import Mode, Scene
from .world import World, chunks, gather

SIDES = ("natural", "replayed")  # the policy that an expectation is under


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How far a replayed target is from the natural one.

    Args:
        natural: the natural target against the replayed one, expectations under the natural.
        replayed: the other way round.
        hellinger: 1 - Σ_y √(π π^Rk), `[M]`.
    """

    natural: Apart
    replayed: Apart
    hellinger: Tensor


def replay_bounds(scene: Scene, mode: Mode) -> dict[str, Tensor]:
    """Every bound on |`Values.replay_bias`|, `[M]` in units of reward, for R in [0, 1]; none without replay.

    Args:
        scene: the engines on a world.
        mode: whose target; `total_variation` itself is there where all responses are enumerated.
    """
    if mode == "disabled":
        return {}
    found = relaxations(moved(scene, mode))
    if scene.world.exhaustive:
        found = {"total_variation": sequence_total_variation(scene, mode)} | found
    return found


def moved(scene: Scene, mode: Mode) -> Moved:
    """The distances between the natural target and that of a mode."""
    natural, replayed = (scene.target[m].logp.detach() for m in ("disabled", mode))
    return Moved(
        natural=apart(natural, replayed, scene.world),
        replayed=apart(replayed, natural, scene.world),
        hellinger=sequence_hellinger(natural, replayed, scene.world),
    )


def relaxations(of: Moved) -> dict[str, Tensor]:
    """What bounds TV over whole responses and is a sum over contexts, by name, `[M]`."""
    sides = dict(zip(SIDES, (of.natural, of.replayed), strict=True))
    most, horizon = of.natural.most_tv, of.natural.horizon
    return {
        "hellinger": hellinger(of.hellinger),
        **{f"linear_{side}": each.tv.sum(-1) for side, each in sides.items()},
        **{f"pinsker_{side}": root(each.kl.sum(-1) / 2) for side, each in sides.items()},
        **{f"bretagnolle_huber_{side}": root(-torch.expm1(-each.kl.sum(-1))) for side, each in sides.items()},
        **{f"adaptive_{side}": adaptive(each) for side, each in sides.items()},
        "coupling": 1 - (1 - most) ** horizon,
    }


def hellinger(squared: Tensor) -> Tensor:
    """√(1 - BC²) from H² = 1 - BC, Le Cam; TV is at least H²."""
    return root(squared * (2 - squared))


def adaptive(of: Apart) -> Tensor:
    """TV of the steps on one side of the best step k, plus Pinsker's bound of those on the other, `[M]` (derived):

    min_k min(Σ_{t≤k} E TV_t + √(Σ_{t>k} E KL_t / 2),   √(Σ_{t≤k} E KL_t / 2) + Σ_{t>k} E TV_t),   k = 0, ..., T
    """
    none = torch.zeros_like(of.tv[:, :1])
    tv, divergence = (torch.cat([none, x.cumsum(-1)], dim=-1) for x in (of.tv, of.kl))
    later_tv, later_kl = (x[:, -1:] - x for x in (tv, divergence))
    first, second = tv + root(later_kl / 2), root(divergence / 2) + later_tv
    return torch.minimum(first, second).amin(-1)


def sequence_total_variation(scene: Scene, mode: Mode) -> Tensor:
    """TV between the natural target and a replayed one over whole responses, which bounds |replay_bias|; `[M]`."""
    natural, replayed = (scene.target[m].logp.detach() for m in ("disabled", mode))
    total = torch.zeros(len(natural), dtype=torch.float64)
    for part in chunks(scene.world.responses(natural), len(natural)):
        first, second = (gather(logp, part).sum(-1).exp() for logp in (natural, replayed))
        total += (first - second).abs().sum(-1)
    return total / (2 * scene.world.prompts)


def sampled_total_variation(scene: Scene, mode: Mode) -> Interval:
    """The same of the first member, from `sim.samples` responses that the replayed target draws, by jackknife."""
    natural, replayed = (scene.target[m].logp.detach()[:1] for m in ("disabled", mode))
    drawn = scene.world.responses(replayed)
    ratio = (gather(natural, drawn) - gather(replayed, drawn)).sum(-1)
    lost = -torch.expm1(ratio.clamp(max=0.0))[0]
    parts = blocks(len(lost))
    left_out = [(lost.sum() - lost[part].sum()) / (len(lost) - len(lost[part])) for part in parts]
    return jackknife(lost.mean(), torch.stack(left_out))


def sequence_hellinger(p: Tensor, q: Tensor, world: World) -> Tensor:
    """H² = 1 - E_x Σ_y √(p(y|x) q(y|x)) of two policies with edge log-probs `[M, N, V]`, `[M]`:

        H² = Σ_c m(c) ½ Σ_a (√p(a|c) - √q(a|c))²,   m(c) = Σ_t Σ over prefixes that end in c of Π √(p q)

    a sum of positive terms, exact also where p and q are close.
    """
    met = world.visits((0.5 * (p + q)).exp())
    return (met * 0.5 * ((0.5 * p).exp() - (0.5 * q).exp()).square().sum(-1)).sum(-1)


def whole(of_error: dict[str, Tensor], of_replay: dict[str, Tensor]) -> Tensor:
    """The least bound on |J(π) - J(μ) - L'(π^Rk)| that they give: on the error, plus on the replay bias; `[M]`."""
    return sum((torch.stack(list(found.values())).amin(0) for found in (of_error, of_replay) if found), torch.zeros(()))
