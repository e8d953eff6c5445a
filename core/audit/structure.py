"""The detectors of structure, stages 1 to 4, in the order in which what they find explains the rest."""

from __future__ import annotations

from . import alignment, columns, degenerate, edges, fills, labels, pairing, prefix, route_order, route_tokens

DETECTORS = (
    *columns.DETECTORS,
    *alignment.DETECTORS,
    *edges.DETECTORS,
    *pairing.DETECTORS,
    *route_order.DETECTORS,
    *route_tokens.DETECTORS,
    *degenerate.DETECTORS,
    *fills.DETECTORS,
    *prefix.DETECTORS,
    *labels.DETECTORS,
)
