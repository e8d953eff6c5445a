"""Which figures there are, and what each quantity in them means."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from firstorder.backends import pair
from firstorder.core.method import value
from firstorder.core.method.surrogate import RECEIPTS
from firstorder.core.quantities import Quantity
from firstorder.core.training import backend, diagnostics, inert, loop, replay, strata
from firstorder.sim.training import halves
from firstorder.sim.training.backend import EXACT

from .runs import Run

LAYER = "route/flip_rate_layer_"
HELD_OUT = "eval/reward"
KNOWN = (diagnostics, strata, loop, backend, halves, replay, value)
QUANTITIES = {name: q for module in KNOWN for name, q in module.QUANTITIES.items()} | RECEIPTS | EXACT


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity.

    Args:
        key: its name in the log.
        title: its name for people.
        meaning: formula or sentence.
        unit: the label of its axis.
        source: where it comes from, if from elsewhere.
        alarm: the level above which the source speaks of danger.
        after: 1 if it is measured after the step's updates, else 0.
        heavy: whether rare values are many times the usual one, which a linear axis would hide.
    """

    key: str
    title: str
    meaning: str
    unit: str
    source: str = ""
    alarm: float | None = None
    after: int = 0
    heavy: bool = False

    @property
    def exact(self) -> bool:
        """Whether it is an evaluation, of all responses or all held-out prompts; else it is of one sampled batch."""
        return self.key in EXACT or self.key == HELD_OUT


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


def _panel(key: str, title: str, *, after: int = 0, heavy: bool = False, known: Quantity | None = None) -> Panel:
    q = known or QUANTITIES[key]
    return Panel(
        key=key,
        title=title,
        meaning=q.formula,
        unit=q.unit,
        source=q.source,
        alarm=q.alarm,
        after=after,
        heavy=heavy,
    )


REWARD = (
    _panel("reward", "sampled reward"),
    _panel("exact/j_pi", "exact J of π", after=1),
    _panel("exact/j_mu", "exact J of μ", after=1),
    _panel(HELD_OUT, "reward on held-out prompts", after=1, known=pair.QUANTITIES[HELD_OUT]),
)
ERRORS = (
    _panel("exact/gradient_error", "gradient error, own target", after=1, heavy=True),
    _panel("exact/gradient_error_natural", "gradient error, natural target", after=1, heavy=True),
    _panel("exact/value_error", "value error", after=1, heavy=True),
)
REMAINDER = (
    _panel("second_order_remainder", "second-order remainder of π_old", heavy=True),
    _panel("update/second_order_remainder", "second-order remainder of π_θ", heavy=True),
)
KL = (
    _panel("kl", "k1 estimate of KL(μ_old ‖ π_old)", heavy=True),
    _panel("k3_kl", "k3 estimate of KL(μ_old ‖ π_old)", heavy=True),
    _panel("kl_failing", "k1 where A < 0", heavy=True),
    _panel("kl_succeeding", "k1 where A > 0", heavy=True),
    _panel("kl_flipped", "k1 where experts flipped", heavy=True),
)
CRITIC = (_panel("critic/vf_loss", "value loss"), _panel("critic/vf_explained_var", "explained variance"))
BIAS = (
    _panel("exact/bias_coherence", "coherence of the bias", after=1),
    _panel("exact/bias_entropy", "bias along the entropy's gradient", after=1),
)
RATIOS = (
    _panel("token_mult_prob_error", "mean exp|D|"),
    _panel("ratio_tail_2", "F(2)"),
    _panel("token_eff_sample_size", "effective sample size, tokens"),
    _panel("seq_eff_sample_size", "effective sample size, responses"),
)
ENTROPY = _panel("update/entropy", "entropy of π_old")
FLIPS = (_panel("route/flip_rate", "flip rate"), _panel("route/tokens_flipped", "tokens flipped"))
REPLAY = (
    _panel("replay/rows_replayed", "rows replayed"),
    _panel("replay/rows_changed", "rows changed by replay"),
    _panel("replay/rows_live", "rows routed live"),
    _panel("replay/rows_padded", "padding"),
    _panel("replay/routes_missing", "routes missing"),
    _panel("replay/routes_repeated", "routes repeated"),
)
GRADIENT = _panel("update/grad_norm", "gradient norm")
TITLES = {
    "clip_upper": "clipped, A > 0",
    "clip_lower": "clipped, A < 0",
    "truncated": "truncated",
    "masked": "masked",
    "corrected": "corrected",
    "ratio_not_one": "ratio not 1",
    "saturated": "held at the bound",
}


NOTES = {
    "errors": "Every response to the measured prompts enumerated, after the step, with θ = θ_old.",
    "remainder": "Estimated from the sampled responses: the leading term of the value error.",
    "kl": "D = log π_old - log μ_old of the sampled tokens, π_old with the recipe's replay.",
    "ratios": "ρ = exp D of the sampled tokens. A dotted line is the level above which the source speaks of danger.",
    "receipts": "Shares of the response tokens of the step, all its updates together.",
    "replay": "A row is the routing of one token in one layer, prompt tokens included. The layers are in the table.",
    "critic": "V the learned value of a context, G the return that it is trained on.",
    "bias": "b = c u - g, the exact update at its best scale minus the gradient of the natural target.",
}
"""What all quantities of a figure have in common, by its name."""


def plots(runs: list[Run]) -> list[Plot]:
    """The figures of these runs; a quantity that no run logged is left out, and a figure without quantities too."""
    logged = {key for run in runs for key in run.logged}
    layers = sorted(int(key.removeprefix(LAYER)) for key in logged if key.startswith(LAYER))
    others = (replay.PREFIX, *inert.QUANTITIES)
    acted = dict.fromkeys(key for run in runs for key in run.receipts if not key.startswith(others))
    rows: tuple[tuple[str, str, tuple[Panel, ...], bool], ...] = (  # name, title, quantities, on one axis
        ("reward", "Reward", REWARD, True),
        ("errors", "Exact errors", ERRORS, False),
        ("remainder", "Second-order remainder", REMAINDER, False),
        ("kl", "Training-inference KL", KL, False),
        ("ratios", "Likelihood ratios of the engines", RATIOS, False),
        ("entropy", "Entropy", (ENTROPY,), True),
        ("flips", "Route flips", FLIPS + tuple(map(_layer, layers)), True),
        ("receipts", "What the parts of the recipe did", tuple(map(_receipt, acted)), False),
        ("replay", "What replay did", REPLAY, False),
        ("gradient", "Gradient norm", (GRADIENT,), True),
        ("critic", "The critic", CRITIC, False),
        ("bias", "Direction of the bias", BIAS, False),
    )
    shown = [(name, title, tuple(p for p in panels if p.key in logged), shared) for name, title, panels, shared in rows]
    return [
        Plot(name=name, title=title, panels=panels, shared=shared, note=NOTES.get(name, ""))
        for name, title, panels, shared in shown
        if panels
    ]


def varied(shown: list[Plot], runs: list[Run]) -> list[Plot]:
    """Without the quantities that are one number in all runs throughout."""
    kept = [replace(plot, panels=tuple(p for p in plot.panels if _varies(p, runs))) for plot in shown]
    return [plot for plot in kept if plot.panels]


def _varies(panel: Panel, runs: list[Run]) -> bool:
    values = np.concatenate([run.logged[panel.key].values.ravel() for run in runs if panel.key in run.logged])
    known = values[np.isfinite(values)]
    return bool((known != known[:1]).any())


def _layer(index: int) -> Panel:
    key = f"{LAYER}{index}"
    return _panel(key, f"flip rate, layer {index}", known=backend.layer_flips(index + 1)[key])


def _receipt(key: str) -> Panel:
    if key in RECEIPTS:
        return _panel(key, TITLES[key])
    return Panel(
        key=key, title=key, meaning="share of response tokens that this part acted on", unit="share of response tokens"
    )
