"""Group baselines in expectation: what an advantage is worth on average over the other responses of its group.

Every weight is homogeneous in the advantage: w(A) = A⁺ w(+1) + A⁻ w(-1) with A = A⁺ - A⁻. So the expected weight of
a response needs only E[A⁺ | R] and E[A⁻ | R], and with finitely many reward levels these are sums over how the
other G - 1 rewards can fall (for binary rewards, the binomial count). A scale of the whole batch is two numbers in the
limit of large batches, so that it stands inside these sums.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import comb

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError
from firstorder.core.method.advantage import advantage
from firstorder.core.method.recipe import Advantage
from firstorder.core.method.scale import Affine

MAX_COMPOSITIONS = 20_000


def expected_parts(
    levels: Tensor, chance: Tensor, rule: Advantage, group_size: int, scale: Affine | None = None
) -> tuple[Tensor, Tensor]:
    """E[A⁺ | R = level] and E[A⁻ | R = level] over the rest of the group.

    Args:
        levels: `[n]` reward levels, ascending.
        chance: `[..., n]` probability of each level for the prompt.
        rule: the baseline.
        group_size: G.
        scale: of the batch, for the leading axis of `chance`; None is 1.

    Returns:
        Two tensors `[..., n]`, both non-negative.

    Raises:
        ConfigError: too many compositions to sum over.
    """
    rest = group_size - 1 if rule.over_group else 0
    probability = _multinomial(_compositions(len(levels), rest), chance)
    plus, minus = _signed(_groups(levels, 1, rest), rule, scale)[..., 0]
    return probability @ plus.mT, probability @ minus.mT


def expected_moments(levels: Tensor, chance: Tensor, rule: Advantage, group_size: int) -> tuple[Tensor, Tensor]:
    """E[A | R = level] and E[A² | R = level] over the rest of the group, without a scale; as `expected_parts`."""
    rest = group_size - 1 if rule.over_group else 0
    probability = _multinomial(_compositions(len(levels), rest), chance)
    a = advantage(_groups(levels, 1, rest), rule)[..., 0]
    return probability @ a.mT, probability @ a.square().mT


def sign_chances(
    levels: Tensor, chance: Tensor, rule: Advantage, group_size: int, scale: Affine | None = None
) -> tuple[Tensor, Tensor]:
    """P(A > 0 | R = level) and P(A < 0 | R = level) over the rest of the group, `[..., n]`; as `expected_parts`."""
    rest = group_size - 1 if rule.over_group else 0
    probability = _multinomial(_compositions(len(levels), rest), chance)
    plus, minus = (_signed(_groups(levels, 1, rest), rule, scale)[..., 0] > 0).to(chance)
    return probability @ plus.mT, probability @ minus.mT


def expected_products(
    levels: Tensor, chance: Tensor, rule: Advantage, group_size: int, scale: Affine | None = None
) -> tuple[Tensor, Tensor]:
    """Second moments of advantages over the rest of the group.

    Args:
        levels: `[n]` reward levels.
        chance: `[X, n]` probability of each level for each prompt.
        rule: the baseline.
        group_size: G.
        scale: of the batch, one for all prompts, and taken to be that of the limit in every batch.

    Returns:
        E[(A±)² | R = level], `[X, n, 2]`; and E[A_i^s A_j^s' | R_i, R_j] for two responses of a group,
        `[X, 2n, 2n]` with (level, sign) flattened.
    """
    n, shared = len(levels), group_size if rule.over_group else 0
    single = _signed(_groups(levels, 1, max(shared - 1, 0)), rule, scale)[..., :1]
    weight = _multinomial(_compositions(n, max(shared - 1, 0)), chance)
    own = torch.einsum("xc,sncr->xns", weight, single.square().view(2, n, -1, 1))
    if group_size < 2:
        return own, torch.zeros(len(chance), 2 * n, 2 * n, dtype=torch.float64)
    two = _signed(_groups(levels, 2, max(shared - 2, 0)), rule, scale)
    first, second = two[..., 0].view(2, n, n, -1), two[..., 1].view(2, n, n, -1)
    weight = _multinomial(_compositions(n, max(shared - 2, 0)), chance)
    cross = torch.einsum("xc,snmc,tnmc->xnsmt", weight, first, second)
    return own, cross.reshape(len(chance), 2 * n, 2 * n)


def _groups(levels: Tensor, own: int, rest: int) -> Tensor:
    """Explicit groups: every choice of `own` rewards, then every composition of the rest, `[n^own, C, own + rest]`."""
    n = len(levels)
    first = torch.cartesian_prod(*[levels] * own).reshape(n**own, 1, own)
    others = levels[_expand(_compositions(n, rest))]
    return torch.cat([first.expand(-1, len(others), -1), others.expand(n**own, *others.shape)], dim=-1)


def _signed(groups: Tensor, rule: Advantage, scale: Affine | None) -> Tensor:
    """A⁺ and A⁻ of every response of every group, `[2, ...]`; with scales `[M]` also of every member, `[2, M, ...]`."""
    a = advantage(groups, rule)
    a = a if scale is None else scale(a.expand(*scale.shift.shape, *a.shape))
    return torch.stack([a.clamp(min=0), (-a).clamp(min=0)])


def check_levels(levels: int, size: int) -> None:
    """Refuse reward levels over which the other `size` responses of a group can fall in too many ways.

    Raises:
        ConfigError: with their number.
    """
    total = comb(size + levels - 1, size)
    if total > MAX_COMPOSITIONS:
        fits = 1
        while comb(fits + levels - 1, fits) <= MAX_COMPOSITIONS:
            fits += 1
        raise ConfigError(
            f"an exact group baseline over {levels} reward levels and schedule.group_size = {size + 1} sums {total} "
            f"compositions, more than {MAX_COMPOSITIONS}; lower schedule.group_size to {fits} or set sim.reward = "
            "binary"
        )


def _compositions(levels: int, size: int) -> Tensor:
    """All counts of `size` rewards over the levels, `[C, levels]`."""
    check_levels(levels, size)
    draws = list(combinations_with_replacement(range(levels), size))
    picks = torch.tensor(draws, dtype=torch.int64).reshape(len(draws), size)
    return torch.nn.functional.one_hot(picks, levels).sum(1) if size else torch.zeros(1, levels, dtype=torch.int64)


def _multinomial(counts: Tensor, chance: Tensor) -> Tensor:
    """Probability of each composition, `[..., C]`."""
    size = counts.sum(-1).double()
    coefficient = torch.lgamma(size + 1) - torch.lgamma(counts.double() + 1).sum(-1)
    log = torch.xlogy(counts.double(), chance[..., None, :]).sum(-1)
    return (coefficient + log).exp()


def _expand(counts: Tensor) -> Tensor:
    """Counts `[C, n]` as level indices of each member, `[C, size]`."""
    size = int(counts[0].sum())
    edges = counts.cumsum(-1)
    return (torch.arange(size)[None, :, None] >= edges[:, None, :]).sum(-1)
