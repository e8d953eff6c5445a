"""Every fault that is put into good dumps to see what an audit makes of it."""

from __future__ import annotations

from .hidden_faults import HIDDEN
from .injecting import Fault
from .log_prob_faults import LOG_PROBS
from .route_faults import ROUTES

FAULTS: tuple[Fault, ...] = (*LOG_PROBS, *ROUTES, *HIDDEN)
