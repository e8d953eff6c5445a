"""Pictures of what a method and an engine's arithmetic do: computed here, by the shipped code."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure

from drawn import COLOURS, GREY, MARKERS, Picture
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import token_weights
from firstorder.core.settings.toml import build, read
from firstorder.sim.config import Sim
from firstorder.sim.exact.measure import measure

MOVED = ("minirl", "ppo-clip", "ppo-dual-clip", "cispo", "sapo", "dppo-tv")  # θ/old = x where the engines agree
APART = ("minirl", "grpo", "tis", "tis-two-sided", "icepop", "mis")  # old/μ = x where θ has not moved
RATIOS = [2 ** (place / 16) for place in range(-32, 33)]
LOGP = -2.0  # of the token under the policy that does not vary
SEEDS = range(8)
KINDS = ("split", "gate_order", "fp16", "bf16", "int8", "fp8", "noise")
TARGETS = {"minirl": "no replay", "minirl-r3": "R3"}


def weights() -> dict[str, Any]:
    """What multiplies A ∇log π of a token, over a ratio, for either sign of A."""
    return {
        "ratio": RATIOS,
        "moved": {name: {sign: _weight(name, a, moved=True) for sign, a in SIGNS.items()} for name in MOVED},
        "apart": {name: {sign: _weight(name, a, moved=False) for sign, a in SIGNS.items()} for name in APART},
    }


SIGNS = {"A > 0": 1.0, "A < 0": -1.0}


def _weight(name: str, advantage: float, *, moved: bool) -> list[float]:
    """Of responses of one token, one a ratio; without the norm, which is the batch's."""
    shift, flat = (
        torch.tensor(RATIOS, dtype=torch.float64).log()[:, None],
        torch.zeros(len(RATIOS), 1, dtype=torch.float64),
    )
    theta, old, mu = (shift, flat, flat) if moved else (flat, flat, -shift)
    stats = TokenStats(
        logp_theta=LOGP + theta,
        logp_old=LOGP + old,
        logp_mu=LOGP + mu,
        mask=torch.ones_like(flat, dtype=torch.bool),
        advantage=torch.full((len(RATIOS),), advantage, dtype=torch.float64),
    )
    found = token_weights(stats, build(Recipe, read(name)))
    return [round(float(x), 9) for x in (found.clipped * found.factor)[:, 0]]


def draw_weights(data: dict[str, Any]) -> Figure:
    """A panel for each method."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(2, len(MOVED), sharex=True, sharey=True)
    for row, (part, label) in zip(panels, (("moved", "θ/old"), ("apart", "old/μ")), strict=True):
        for ax, (name, signs) in zip(row, data[part].items(), strict=True):
            ax.plot(data["ratio"], data["ratio"], color=GREY, linewidth=0.8, linestyle=":")
            for place, (sign, values) in enumerate(signs.items()):
                ax.plot(
                    data["ratio"], values, color=COLOURS[place], label=sign, linestyle=("-", "--")[place], linewidth=1.8
                )
            ax.set_title(name, loc="left")
            ax.set_xlabel(label)
            ax.set_xscale("log", base=2)
    panels[0][0].set(ylim=(-0.1, 4.1), ylabel="weight / A")
    panels[1][0].set_ylabel("weight / A")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def kinds() -> dict[str, Any]:
    """KL, flips and the error of the gradient by the arithmetic of the rollout engine, a number a policy."""
    found = {name: {kind: [measured(name, kind, seed) for seed in SEEDS] for kind in KINDS} for name in TARGETS}
    return {
        name: {kind: {key: [each[key] for each in runs] for key in QUANTITIES} for kind, runs in of.items()}
        for name, of in found.items()
    }


QUANTITIES = {
    "kl_mu_old": "KL, nats a token",
    "flip_rate": "routes that differ",
    "gradient_error_natural": "gradient error",
}


def measured(name: str, kind: str, seed: int) -> dict[str, float]:
    """Everything about a recipe on a policy and an engine of a kind, on one prompt."""
    found: dict[str, float] = measure(
        build(Recipe, read(name)), Sim(seed=seed, prompts=1, numerics={"kind": kind, "seed": seed})
    )
    return found


def draw_kinds(data: dict[str, Any]) -> Figure:
    """A marker a policy, a stroke at the median; engines are what they are under any recipe."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for ax, (quantity, title) in zip(figure.subplots(1, len(QUANTITIES), sharey=True), QUANTITIES.items(), strict=True):
        shown = TARGETS if quantity == "gradient_error_natural" else {"minirl": "no replay"}
        for place, (name, label) in enumerate(shown.items()):
            for row, kind in enumerate(KINDS):
                values, y = data[name][kind][quantity], row + 0.24 * place - 0.12 * (len(shown) - 1)
                told = {"label": label} if row == 0 and len(shown) > 1 else {}
                ax.plot(
                    values, [y] * len(values), MARKERS[place], color=COLOURS[place], alpha=0.4, markersize=4, **told
                )
                ax.plot([median(values)] * 2, [y - 0.14, y + 0.14], color=COLOURS[place], linewidth=2)
        ax.set(yticks=range(len(KINDS)), yticklabels=KINDS)
        ax.set_title(title, loc="left")
        if quantity == "flip_rate":  # some engines flip no route of some policies
            ax.set_xscale("symlog", linthresh=1e-4)
            ax.set_xlim(-2e-5, None)
        else:
            ax.set_xscale("log")
    figure.axes[-1].legend(fontsize=8)
    return figure


PICTURES = (
    Picture(name="weights", data=weights, draw=draw_weights),
    Picture(name="numerics", data=kinds, draw=draw_kinds),
)
