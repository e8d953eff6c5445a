"""Faults that a dump does not show, and what would show each."""

from __future__ import annotations

from dataclasses import replace

import torch

from firstorder.core.formats.sample import Sample

from .injecting import Fault, each, shift
from .route_faults import of_next, relabelled

BOTH = ("logp_mu", "logp_old")


def unchanged(samples: list[Sample], g: torch.Generator) -> list[Sample]:
    """The fault is in what is done with the samples, or in what is not among them."""
    return samples


def alone(samples: list[Sample], g: torch.Generator) -> list[Sample]:
    """Without the trainer's routes."""
    return [replace(s, routes_old=None) for s in samples]


def _together(sample: Sample, g: torch.Generator) -> Sample:
    """Both log-probs and the mask late by a token."""
    assert sample.logp_mu is not None
    assert sample.logp_old is not None
    mask, mu, old = (shift(x, 1) for x in (sample.mask, sample.logp_mu, sample.logp_old))
    return replace(sample, mask=mask, logp_mu=mu, logp_old=old)


def _rolled(sample: Sample, g: torch.Generator) -> Sample:
    assert sample.routes is not None
    moved = torch.roll(sample.routes, 1, 1)
    return replace(sample, routes=moved, routes_old=None)


HIDDEN = (
    Fault(
        name="log-probs and mask late together",
        inject=each(_together),
        needs=BOTH,
        found_by=None,
        extra="log-probs of the same tokens from any third model",
    ),
    Fault(
        name="masked tokens in the denominator",
        inject=unchanged,
        needs=BOTH,
        found_by=None,
        extra="the logged loss of the step, to be recomputed from the dump",
    ),
    Fault(
        name="current in place of old log-probs",
        inject=unchanged,
        needs=BOTH,
        found_by=None,
        extra="log-probs at a step's last minibatch beside those before the update",
    ),
    Fault(
        name="no gradient reaches the router",
        inject=unchanged,
        needs=("routes",),
        found_by=None,
        extra="the norm of the router's gradient",
    ),
    Fault(
        name="the choice is made again when activations are recomputed",
        inject=unchanged,
        needs=("routes",),
        found_by=None,
        extra="the trainer's routes in the backward pass",
    ),
    Fault(
        name="padding sent to expert 0",
        inject=unchanged,
        needs=("routes",),
        found_by=None,
        extra="the load of each expert that the engine counts, padding included",
    ),
    Fault(
        name="the best and the worst of every group alone",
        inject=unchanged,
        needs=("reward", "group"),
        found_by=None,
        extra="the size of a group",
    ),
    Fault(
        name="physical expert ids, one set of routes",
        inject=lambda samples, g: alone(relabelled(samples, g), g),
        needs=("routes",),
        found_by=None,
        extra="the trainer's routes, or the engine's map from physical to logical experts",
    ),
    Fault(
        name="layers off by one, one set of routes",
        inject=each(_rolled),
        needs=("routes",),
        found_by=None,
        extra="the trainer's routes",
    ),
    Fault(
        name="routes of the next response, one set, cut to length",
        inject=lambda samples, g: alone(of_next(samples, g), g),
        needs=("routes",),
        found_by=None,
        extra="the trainer's routes; without them rows that are missing show it, where lengths differ",
    ),
)
