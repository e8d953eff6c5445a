"""Which figures there are, and what each quantity in them means."""

from __future__ import annotations

from dataclasses import dataclass

from firstorder.core import value
from firstorder.core.diagnostics import QUANTITIES, Quantity

from .runs import Run

LAYER = "route/flip_rate_layer_"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity.

    Args:
        key: its name in the log.
        title: its name for people.
        meaning: formula or sentence.
        unit: the label of its axis.
        source: where it comes from, if from elsewhere.
        after: 1 if it is measured after the step's updates, else 0.
        heavy: whether rare values are many times the usual one, which a linear axis would hide.
    """

    key: str
    title: str
    meaning: str
    unit: str
    source: str = ""
    after: int = 0
    heavy: bool = False


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One figure.

    Args:
        name: of its files.
        title: its heading.
        panels: its quantities.
        shared: whether they can be read on one axis.
        note: what all its quantities have in common.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    shared: bool
    note: str = ""


def _known(key: str, title: str, known: Quantity, *, heavy: bool = False) -> Panel:
    return Panel(key=key, title=title, meaning=known.formula, unit=known.unit, source=known.source, heavy=heavy)


REWARD = (
    Panel(key="reward", title="sampled reward", meaning="mean R of the responses sampled from μ_old", unit="reward"),
    Panel(
        key="exact/j_pi",
        title="exact J of π",
        meaning="E[R] of the training engine's policy with its own routes, after the step, every response to the "
        "measured prompts enumerated",
        unit="reward",
        after=1,
    ),
    Panel(
        key="exact/j_mu",
        title="exact J of μ",
        meaning="E[R] of the inference engine's policy, after the step, every response to the measured prompts "
        "enumerated",
        unit="reward",
        after=1,
    ),
)
ERRORS = tuple(
    Panel(key=f"exact/{key}", title=title, meaning=meaning, unit=unit, after=1, heavy=True)
    for key, title, meaning, unit in (
        (
            "gradient_error",
            "gradient error, own target",
            "min_c ‖c u - g‖ / ‖g‖ of the recipe's first update at these weights, g the gradient of its own target",
            "relative",
        ),
        (
            "gradient_error_natural",
            "gradient error, natural target",
            "the same against the gradient of the policy that routes by itself",
            "relative",
        ),
        (
            "value_error",
            "value error",
            "|J(π) - J(μ) - E_μ[R Σ(ρ - 1)]| of the recipe's own target",
            "reward",
        ),
    )
)
KL = tuple(
    _known(key, f"{name} estimate of KL(μ_old ‖ π_old)", QUANTITIES[key], heavy=True)
    for key, name in (("kl", "k1"), ("k3_kl", "k3"))
)
CRITIC = tuple(
    _known(key, title, value.QUANTITIES[key])
    for key, title in (("critic/vf_loss", "value loss"), ("critic/vf_explained_var", "explained variance"))
)
ENTROPY = Panel(
    key="update/entropy",
    title="entropy of π_old",
    meaning="-Σ_v π_old(v) log π_old(v), mean over response tokens, with the recipe's replay",
    unit="nats/token",
)
FLIPS = (
    Panel(
        key="route/flip_rate",
        title="flip rate",
        meaning="share of (token, layer) at which π_old, routing by itself, chooses another expert set than μ_old did",
        unit="share of (token, layer)",
    ),
    Panel(
        key="route/tokens_flipped",
        title="tokens flipped",
        meaning="share of response tokens with a flip in at least one layer",
        unit="share of tokens",
    ),
)
GRADIENT = Panel(
    key="update/grad_norm",
    title="gradient norm",
    meaning="‖∇L‖₂ over all parameters before it is cut to optimizer.max_grad_norm, mean over the step's updates",
    unit="loss per unit of parameter",
)
RECEIPTS = {
    "clip_upper": ("clipped, A > 0", "the clip changed the ratio of a token with A > 0"),
    "clip_lower": ("clipped, A < 0", "the clip changed the ratio of a token with A < 0"),
    "corrected": ("corrected", "the correction factor is not 1"),
    "ratio_not_one": ("ratio not 1", "the ratio of [ratio] is not 1"),
}


def plots(runs: list[Run]) -> list[Plot]:
    """The figures of these runs; a quantity that no run logged is left out, and a figure without quantities too."""
    logged = {key for run in runs for key in run.logged}
    layers = sorted(int(key.removeprefix(LAYER)) for key in logged if key.startswith(LAYER))
    acted = dict.fromkeys(key for run in runs for key in run.receipts)
    all_plots = (
        Plot(name="reward", title="Reward", panels=REWARD, shared=True),
        Plot(
            name="errors",
            title="Exact errors",
            panels=ERRORS,
            shared=False,
            note="Every response to the measured prompts enumerated, after the step, with θ = θ_old.",
        ),
        Plot(
            name="kl",
            title="Training-inference KL",
            panels=KL,
            shared=False,
            note="D = log π_old - log μ_old of the sampled tokens, π_old with the recipe's replay.",
        ),
        Plot(name="entropy", title="Entropy", panels=(ENTROPY,), shared=True),
        Plot(name="flips", title="Route flips", panels=FLIPS + tuple(map(_layer, layers)), shared=True),
        Plot(
            name="receipts",
            title="What the parts of the recipe did",
            panels=tuple(map(_receipt, acted)),
            shared=False,
            note="Shares of the response tokens of the step, all its updates together.",
        ),
        Plot(name="gradient", title="Gradient norm", panels=(GRADIENT,), shared=True),
        Plot(
            name="critic",
            title="The critic",
            panels=CRITIC,
            shared=False,
            note="V the learned value of a context, G the return that it is trained on.",
        ),
    )
    found = []
    for plot in all_plots:
        panels = tuple(panel for panel in plot.panels if panel.key in logged)
        if panels:
            found.append(Plot(name=plot.name, title=plot.title, panels=panels, shared=plot.shared, note=plot.note))
    return found


def _layer(index: int) -> Panel:
    return Panel(
        key=f"{LAYER}{index}",
        title=f"flip rate, layer {index}",
        meaning=f"share of response tokens at which the expert sets differ in MoE layer {index}, counted from 0",
        unit="share of tokens",
    )


def _receipt(key: str) -> Panel:
    title, meaning = RECEIPTS.get(key, (key, "share of response tokens that this part acted on"))
    return Panel(key=key, title=title, meaning=meaning, unit="share of response tokens")
