"""The detectors of structure, stages 1 to 4, in the order in which what they find explains the rest."""

from __future__ import annotations

from . import alignment, columns, degenerate, fills, pairing, route_order

DETECTORS = (
    *columns.DETECTORS,
    *alignment.DETECTORS,
    *pairing.DETECTORS,
    *route_order.DETECTORS,
    *degenerate.DETECTORS,
    *fills.DETECTORS,
)
