"""Theorem: what an update without importance sampling does where nothing can be earned any more.

Shapes: M members, N contexts, V vocabulary, P parameters.

A weight A alone adds d(c) μ(a|c) A(c, a) to the edge (c, a), for d(c) visits of a response of μ and A(c, a) the mean
advantage of the responses that take the edge. With V(c) = Σ_a μ A, and since ∇KL(μ‖π) = -Σ_a μ ∇log π at a context,

    u - u_IS = -Σ_c d V ∇KL_c(μ‖π) + Σ_c d Σ_a (μ - π)(A - V) ∇log π,        u_IS of the weight A π/μ

Where every response fails, A = V = -α at every token: the update ascends KL(μ‖π), and with the ratio it is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.advantages import AdvantageTable
from firstorder.sim.exact.edges import kl, vjp
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.scene import MODES, Mode, Scene
from firstorder.sim.exact.staleness import path
from firstorder.sim.model.policy import gradient
from firstorder.sim.trials.budget import Budget

from .claim import EXACT, Claim, Outcome, theorem
from .ensemble import ensemble
from .identities import SCALE, STALENESS, off
from .worlds import LONG, POLICIES, SHORT

TREE = SHORT.model_copy(update={"recovery": 0})  # with a token that leads back nothing is lost for good
HORIZONS = (32, 128, 512)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The weights A and A π/μ on one scene, edge by edge.

    Args:
        scene: both policies.
        mode: of the target.
        bare, weighed: E_μ[Σ_t w_t] of every edge, without the ratio and with it, `[M, N, V]`.
        alpha: -E[A | R = 0] at every context, that of its prompt, `[M, N]`.
    """

    scene: Scene
    mode: Mode
    bare: Tensor
    weighed: Tensor
    alpha: Tensor

    @property
    def failing(self) -> Tensor:
        """Contexts that μ comes to on failing responses alone, bool `[M, N]`."""
        return (self.scene.worth.sum(-1) == 0) & (self.scene.reached > 0)

    @property
    def logp(self) -> Tensor:
        """log π, `[M, N, V]`."""
        return self.scene.target[self.mode].logp.detach()

    def along(self, edges: Tensor) -> Tensor:
        """Σ_edges a ∇log π, `[M, P]`."""
        return vjp(self.scene.target[self.mode], edges, self.scene.weights)

    def ascent(self, weight: Tensor) -> Tensor:
        """∇ Σ_c weight(c) KL_c(μ‖π) by automatic differentiation, `[M, P]`."""
        total = (weight * kl(self.scene.mu_old.logp, self.scene.target[self.mode].logp)).sum()
        return gradient(total, self.scene.weights, keep=True)

    def by_logit(self, weight: Tensor) -> Tensor:
        """The same by the logits of every context, `[M, N, V]`."""
        logits = self.logp.clone().requires_grad_()
        with torch.enable_grad():
            total = (weight * kl(self.scene.mu_old.logp, logits.log_softmax(-1))).sum()
            (slopes,) = torch.autograd.grad(total, logits)
        return slopes

    def parts(self) -> tuple[Tensor, Tensor]:
        """The two sums of u - u_IS, `[M, P]`."""
        mu, pi, worth = self.scene.mu_old.logp.exp(), self.logp.exp(), self.bare.sum(-1)  # worth is d V
        return self.ascent(-worth), self.along((mu - pi) * (self.bare / mu - worth[..., None]))


def drift(scene: Scene, mode: Mode) -> Drift:
    """The group-mean advantage with no ratio, and with that of θ and μ, on a scene."""
    bare, weighed = (Measurement(scene=scene, recipe=_recipe(ratio, mode)) for ratio in ("none", "theta/mu"))
    assert isinstance(bare.advantages, AdvantageTable)
    return Drift(
        scene=scene,
        mode=mode,
        bare=bare.coefficients(),
        weighed=weighed.coefficients(),
        alpha=bare.advantages.minus[..., 0] @ scene.world.reachable.double(),  # a context is of one prompt
    )


def _recipe(ratio: str, mode: Mode) -> Recipe:
    """MiniRL without its clip, which would be a second reason for a bias once the target is stale."""
    parts = {"ratio": {"of": ratio}, "clip": {"kind": "none"}, "router_replay": {"mode": mode}}
    return build(Recipe, {**read("minirl"), **parts})


def projected(edges: Tensor, logp: Tensor) -> Tensor:
    """Σ_a x(a) ∇log π(a|c) by the logits of every context, x(a) - π(a|c) Σ_b x(b), `[M, N, V]`."""
    return edges - logp.exp() * edges.sum(-1, keepdim=True)


def deviations(one: Drift) -> dict[str, float]:
    """How far each statement is off."""
    weight = one.alpha * one.scene.reached * one.failing
    bare, weighed = (edges * one.failing[..., None] for edges in (one.bare, one.weighed))
    return {
        "without the ratio, by edge": off(projected(bare, one.logp), one.by_logit(weight)),
        "without the ratio": off(one.along(bare), one.ascent(weight)),
        "with the ratio": off(projected(weighed, one.logp) + weighed, weighed),
        "bias": off(torch.stack(one.parts()).sum(0), one.along(one.bare - one.weighed)),
    }


def shares(one: Drift) -> dict[str, float]:
    """What the bias is made of and where it points: medians over members."""
    bias, target = one.along(one.bare - one.weighed), objectives.gradient(one.scene, one.mode)
    failing = one.along((one.bare - one.weighed) * one.failing[..., None])
    along, _ = one.parts()
    everywhere, lost = one.ascent(one.scene.reached), one.ascent(one.scene.reached * one.failing)
    found = {
        "bias_over_gradient": bias.norm(dim=-1) / target.norm(dim=-1),
        "from_failing_contexts": _share(failing, bias),
        "along_kl": _share(along, bias),
        "cosine_kl": torch.cosine_similarity(bias, everywhere, dim=-1),
        "cosine_kl_failing": torch.cosine_similarity(bias, lost, dim=-1),
        "cosine_gradient": torch.cosine_similarity(bias, target, dim=-1),
    }
    return {name: float(x.median()) for name, x in found.items()}


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """⟨part, whole⟩ / ‖whole‖²: shares of parts add up to 1."""
    return (part * whole).sum(-1) / whole.square().sum(-1)


def _scene(budget: Budget, sim: Sim, staleness: int) -> Scene:
    group = ensemble(Budget(policies=min(budget.policies, POLICIES), draws=1, first_seed=budget.first_seed), sim)
    *_, theta = path(sim, group.engines(SCALE), group.weights, staleness)
    return group.scene(SCALE, MODES, theta=theta)


def _drift(budget: Budget) -> Outcome:
    found: dict[str, float] = {}
    for name, sim in {"tree": TREE, "graph": LONG}.items():
        scene = _scene(budget, sim, STALENESS)
        for mode in MODES:
            found |= {f"{name} {mode} {what}": x for what, x in deviations(drift(scene, mode)).items()}
    at = {t: LONG.model_copy(update={"horizon": t}) for t in HORIZONS}
    made = {str(t): shares(drift(_scene(budget, sim, 0), "disabled")) for t, sim in at.items()}
    return theorem(found, by_horizon=made, threshold=EXACT)


CLAIMS = [
    Claim(
        id="drift",
        statement="without the ratio, contexts that only failing responses come to ascend KL(mu||pi); with it they add "
        "nothing",
        source="derived, for the advantage of arXiv 2512.01374 eq. (7)",
        kind="theorem",
        rule=f"the ascent, the nothing and the two parts of the bias within {EXACT:g}, on the tree and over responses "
        f"of {LONG.horizon} tokens, for every replay mode",
        check=_drift,
    ),
]
