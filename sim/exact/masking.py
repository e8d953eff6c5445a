"""What the sampling mask of the rollout engine leaves out, and what it costs to train with it, or without it.

A mask that is replayed makes π and μ policies over the same tokens: everything about the two is exact as without one,
and what is left of the cost is that this π is not the policy over all tokens. A mask that is ignored leaves π as it is,
and μ no longer covers it.

Shapes: M members, N contexts, P parameters.
"""

from __future__ import annotations

from torch import Tensor

from .edges import vjp
from .fit import compare
from .measurement import Measurement
from .objectives import slopes, value
from .scene import Scene


def masking(measurement: Measurement) -> dict[str, float | None] | None:
    """What the mask does, means over members; None where μ leaves nothing out.

    Returns:
        tokens_truncated: share of response tokens that are sampled from fewer tokens than there are.
        kept: tokens sampled from, mean over these; None where there are none.
        mass_outside: mass of π_old, over all tokens with live routes, on what is left out, mean over response tokens;
            1 - E_μ[ρ] where the mask is ignored.
        j_whole: J of the natural target over all tokens.
        gradient_error_whole: the error of the expected update against the gradient of that, best-scaled; None where
            that is 0.
    """
    scene = measurement.scene
    if scene.mask is None:
        return None
    keep, whole = scene.mask.keep, scene.mask.whole
    fewer = (~keep.all(-1)).double()
    truncated = _per_token(scene, fewer)
    goal = vjp(whole, slopes(whole.logp.detach(), scene.world), scene.weights)
    mean_update, mean_goal = (x.mean(0, keepdim=True) for x in (measurement.update, goal))
    return {
        "tokens_truncated": truncated,
        "kept": _per_token(scene, fewer * keep.sum(-1)) / truncated if truncated else None,
        "mass_outside": _per_token(scene, scene.mask.outside),
        "j_whole": float(value(whole.logp.detach(), scene.world).mean()),
        "gradient_error_whole": float(compare(mean_update, mean_goal).error) if goal.any() else None,
    }


def note(scene: Scene, truncation: str) -> str | None:
    """What no longer holds where a mask is ignored, in a sentence; None where it is not."""
    if scene.mask is None or scene.mask.replayed:
        return None
    return (
        f"{truncation} leaves tokens out of mu that pi keeps (sampling_mask = ignored): E_mu[rho] < 1 and no weight is "
        "unbiased; log_chi2_seq is of what mu covers, where that of pi is infinite; and the published bounds, which "
        "want mu to cover pi, do not hold"
    )


def _per_token(scene: Scene, of_contexts: Tensor) -> float:
    return float((scene.share * of_contexts).sum(-1).mean())
