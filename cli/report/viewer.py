"""The token viewer: responses token by token, with what both engines said of each and where they routed it.

Shapes: n tokens of a view, M MoE layers, K experts a token. The page holds the data compactly: a route row as the
gaps between its ids in order, the trainer's only where they differ, all of it deflated. 24 views of 600 tokens of 48
layers of 8 experts are 5 MB when 10 % of the routes differ.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstorder.core.audit.report import View

from . import kit

Ids = NDArray[np.int64]
DIGITS = 8  # significant ones of a log-prob: as many as a float32 has
NARROW = 255  # the largest number of one byte

SKELETON = """\
<noscript><p>The viewer needs JavaScript; the page fetches nothing and runs nothing but its own script.</p></noscript>
<div id="view-filters">
<label>step <select id="view-step"></select></label> <label>why <select id="view-why"></select></label>
<span id="view-count" class="note" role="status"></span></div>
<div class="wide scrolled" role="region" tabindex="0" aria-label="responses">
<table id="view-list"><thead><tr></tr></thead><tbody></tbody></table></div>
<h3 id="view-shown"></h3>
<p class="note" id="view-about"></p>
<ul class="legend" id="view-legend" aria-label="what colours and lines mean"></ul>
<p class="note keys">Keys: <kbd>←</kbd> <kbd>→</kbd> the token before and after, <kbd>n</kbd> <kbd>p</kbd> the next
and the previous worst token, <kbd>j</kbd> <kbd>k</kbd> the next and the previous response. Hover over a token, or
choose it, to see its numbers and routes.</p>
<div class="reading"><div id="view-tokens" role="listbox" aria-label="tokens"></div>
<aside id="view-detail" aria-label="the chosen token"></aside></div>"""


def viewer(views: Sequence[View]) -> str:
    """The viewer as a part of a page whose script is `script`."""
    return f"{SKELETON}\n{kit.data('view-data', [encoded(view) for view in views])}"


def script() -> str:
    """What makes the viewer move."""
    return kit.static("viewer.js")


def encoded(view: View) -> dict[str, Any]:
    """A view as the script reads it."""
    ours, theirs = _ids(view.routes), _ids(view.routes_old)
    alike = ours is not None and theirs is not None and ours.shape == theirs.shape
    return {
        "source": view.source,
        "step": view.step,
        "first": view.first,
        "why": view.why,
        "tokens": view.tokens,
        "texts": view.texts,
        "mask": "".join("01"[kept] for kept in view.mask),
        "mu": _numbers(view.logp_mu),
        "old": _numbers(view.logp_old),
        "flips": _flips(ours, theirs) if alike else None,
        "rollout": packed(ours),
        "trainer": packed(theirs, ours if alike else None),
    }


def packed(routes: Ids | None, beside: Ids | None = None) -> dict[str, Any] | None:
    """Route rows as text that a script can unpack.

    With s the ids of a row in order, each one more so that 0 is a missing one, a row is s_1, s_2 - s_1, ..,
    s_K - s_{K-1}. Where there are rows to compare with, a row that equals the one beside it is all 0, and the first
    number of another is one more.

    Args:
        routes: `[n, M, K]`, negative where missing.
        beside: rows that the same script has at hand, `[n, M, K]`.
    """
    if routes is None:
        return None
    ordered = _ordered(routes)
    gaps = np.diff(ordered, axis=-1, prepend=0)
    if beside is not None:
        gaps[..., 0] += 1
        gaps[(ordered == _ordered(beside)).all(-1)] = 0
    size = "u1" if gaps.max() <= NARROW else "<u2"
    return {
        "layers": routes.shape[1],
        "k": routes.shape[2],
        "bytes": np.dtype(size).itemsize,
        "beside": beside is not None,
        "data": base64.b64encode(zlib.compress(gaps.astype(size).tobytes(), 9)).decode(),
    }


def _ordered(routes: Ids) -> Ids:
    return np.sort(routes.clip(-1) + 1, axis=-1)


def _ids(routes: Sequence[Sequence[Sequence[int]]] | None) -> Ids | None:
    """Route rows as an array; None where there are none, or a view holds no layer."""
    ids = None if routes is None else np.asarray(routes, dtype=np.int64)
    return None if ids is None or not ids.size else ids


def _flips(ours: Ids | None, theirs: Ids | None) -> list[int]:
    """Layers in which the expert sets of a token differ, where both engines have sent them, `[n]`."""
    assert ours is not None
    assert theirs is not None
    sent = (ours >= 0).all(-1) & (theirs >= 0).all(-1)
    differ: Ids = ((_ordered(ours) != _ordered(theirs)).any(-1) & sent).sum(-1)
    return [int(count) for count in differ]


def _numbers(values: Sequence[float] | None) -> list[float | str | None] | None:
    """Log-probs with as many digits as they have; NaN is null, an infinity its name: JSON has neither."""
    return None if values is None else [_number(value) for value in values]


def _number(value: float) -> float | str | None:
    if math.isfinite(value):
        return float(f"{value:.{DIGITS}g}")
    return None if math.isnan(value) else f"{value:g}"
