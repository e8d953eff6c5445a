"""How the expected update of a recipe is made exact where responses are too many to look at one by one.

A token's weight is a function of its edge and of the sign of the advantage, times products over the tokens before and
after it:

    E_μ[Σ_t w_t ∇ log π] = Σ_edges μ(a|c) w(c, a, ±) ∇ log π(a|c) · E[A±, before, after]

and the last factor is `World.through` with kernels μ·ρ where a product reaches and μ where none does. What is no such
product, for a bound on it or a mean over it, has no form, and is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from firstorder.core.method.recipe import Recipe, Rejection

SIGNED_BY_TOKEN = ("none", "minirl", "tv", "kl")  # clips that look at the token alone, whatever the span of the ratio


@dataclass(frozen=True, kw_only=True)
class Form:
    """The parts of a weight.

    Args:
        token: the recipe whose weight of a response of one token is w(c, a, ±).
        before: the ratios whose product over the tokens before enters.
        after: those whose product over the tokens after enters.
        ahead: the ratio whose product over the next `steps` tokens enters.
        masked: whether a token that is rejected takes its response with it.
    """

    token: Recipe
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    ahead: str | None = None
    steps: int = 0
    masked: bool = False

    @property
    def product(self) -> bool:
        """Whether other tokens than its own enter a weight."""
        return bool(self.before or self.after or self.ahead or self.masked)


def form(recipe: Recipe) -> Form | None:
    """The form of a recipe; None where it has none."""
    ratio, correction, rejection, clip = recipe.ratio, recipe.correction, recipe.rejection, recipe.clip
    if recipe.has_critic or recipe.parts["clip.kind"].scope == "sequence":
        return None
    spans = {"ratio": ratio.span if ratio.of != "none" else "token"}
    if correction.kind in ("ratio", "truncate", "mask"):
        spans["correction"] = correction.span
    elif recipe.parts["correction.kind"].scope != "token":
        return None
    if not _by_token(rejection) or (correction.mean_one and correction.span != "token"):
        return None
    if any(span not in ("token", "prefix", "sequence", "forward") for span in spans.values()):
        return None
    if spans["ratio"] != "token" and (clip.kind not in SIGNED_BY_TOKEN or ratio.router_floor):
        return None
    if spans.get("correction", "token") != "token" and correction.kind != "ratio":
        return None
    token = recipe.model_copy(
        update={
            "ratio": ratio.model_copy(update={"span": "token", "steps": 1}),
            "correction": correction.model_copy(update={"span": "token"}),
            "rejection": rejection.model_copy(update={"over": "token"}),
        }
    )
    of = {"ratio": ratio.of, "correction": correction.of}
    ahead = ratio.of if spans["ratio"] == "forward" and ratio.steps > 1 else None
    return Form(
        token=token,
        before=tuple(of[part] for part, span in spans.items() if span in ("prefix", "sequence")),
        after=tuple(of[part] for part, span in spans.items() if span == "sequence"),
        ahead=ahead,
        steps=ratio.steps - 1 if ahead else 0,
        masked=rejection.kind != "none" and rejection.over == "max",
    )


def _by_token(rejection: Rejection) -> bool:
    """Whether a token is kept for what it is alone, or its response for what each of its tokens is alone.

    The largest v_t is at most `high` where each is. That it is at least `low` asks for one of them, unless no v_t is
    less; and which responses a rule minds at all is one sign's for all of their tokens.
    """
    if rejection.kind == "none" or rejection.over == "token":
        return True
    least = -torch.inf if rejection.kind == "k1" else 0.0
    return rejection.over == "max" and rejection.low <= least and rejection.where == "always"
