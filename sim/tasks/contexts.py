"""Contexts that merge: a task in which what comes next depends on the context and the token alone.

Shapes: S contexts, F features, V vocabulary, X prompts, E endings, U distinct places that a context leads to, T
tokens, `...` any leading axes.

A context is a row of features, and a policy without memory reads nothing else: one pass over S rows says all that it
will ever say, however long a response is. A response walks from context to context until an ending or the horizon:

    c_1 = start(x),      c_{t+1} = follow(c_t, y_t)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError, DataError

from .recursion import Branches, branches


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """The contexts of some prompts, and where every token leads.

    Args:
        features: float64 `[S, F]`, how much of each feature a context has; the policy embeds their sum.
        keys: int64 `[S]`, the hash of what each context is, where an engine's noise is looked up: it does not change
            with the order of rows.
        start: int64 `[X]`, the context of each prompt.
        follow: int64 `[S, V]`, where each token leads: a context, or S + e for the end of the response with ending e.
        ends: float64 `[E]` in [0, 1], what a response that comes to each ending earns.
        cut: float64 `[S]` in [0, 1], what a response earns that the horizon cuts on its way to each context.

    Raises:
        DataError: a transition leaves the table.
        ConfigError: no response can earn more than another.
    """

    features: Tensor
    keys: Tensor
    start: Tensor
    follow: Tensor
    ends: Tensor
    cut: Tensor

    def __post_init__(self) -> None:
        size, places = len(self.features), len(self.features) + len(self.ends)
        outside = (self.follow < 0) | (self.follow >= places)
        if outside.any():
            context, token = outside.nonzero()[0].tolist()
            raise DataError(
                f"`follow` must lead to one of {size} contexts or {len(self.ends)} endings, got "
                f"{int(self.follow[context, token])} at context {context}, token {token}; number them from 0 to "
                f"{places - 1}"
            )
        if ((self.start < 0) | (self.start >= size)).any():
            raise DataError(f"`start` must name one of {size} contexts, got {self.start.tolist()}")
        if len(torch.unique(self.rewards)) < 2:
            raise ConfigError(
                f"every response earns {float(self.rewards[0]):g}, so there is nothing to learn; let some ending or "
                "context earn another reward"
            )

    @property
    def rewards(self) -> Tensor:
        """`[S + E]`, what a response earns whose last token leads to each context or ending."""
        return torch.cat([self.cut, self.ends])

    @property
    def levels(self) -> Tensor:
        """The distinct rewards, ascending, `[n]`."""
        levels: Tensor = torch.unique(self.rewards)
        return levels

    @property
    def level(self) -> Tensor:
        """Which of `levels` the last step to each context or ending earns, int64 `[S + E]`."""
        return torch.searchsorted(self.levels, self.rewards)

    @cached_property
    def branches(self) -> Branches:
        """The distinct places that a context's tokens lead to."""
        return branches(self.follow, len(self.follow), len(self.ends))

    def walk(self, start: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The contexts that tokens are said at, int64 `[..., T]`; 0 off the mask.

        Args:
            start: int64 `[...]`, the first.
            tokens: int64 `[..., T]`, from 0 to V-1, also off the mask.
            mask: bool `[..., T]`, True up to the end of each response.
        """
        vocab = self.follow.shape[1]
        follow = self.follow.clamp(max=len(self.follow) - 1).flatten()  # nobody walks on from an ending
        context, visited = start, []
        for token in tokens.movedim(-1, 0).contiguous():
            visited.append(context)
            context = follow.take(context * vocab + token)
        return torch.where(mask, torch.stack(visited).movedim(0, -1).contiguous(), 0)

    def end(self, start: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The context or ending that each walk comes to, int64 `[...]`; arguments as of `walk`."""
        last = (mask.sum(-1, keepdim=True) - 1).clamp(min=0)
        context, token = (x.gather(-1, last)[..., 0] for x in (self.walk(start, tokens, mask), tokens))
        return torch.where(mask.any(-1), self.follow[context, token], start)


def check_reached(table: Contexts) -> Contexts:
    """Refuse contexts from whose prompts no response comes to a second reward, however long it is.

    Raises:
        ConfigError: with the reward that all earn.
    """
    seen = torch.zeros(len(table.rewards), dtype=torch.bool)
    fresh: Tensor = torch.unique(table.start)
    while len(fresh):
        ahead: Tensor = torch.unique(table.follow[fresh])
        ahead = ahead[~seen[ahead]]
        seen[ahead] = True
        fresh = ahead[ahead < len(table.follow)]
    earned = torch.unique(table.rewards[seen])
    if len(earned) < 2:
        raise ConfigError(
            f"no token leads to another reward than {float(earned[0]):g}, so there is nothing to learn; let some "
            "ending or context that responses come to earn another"
        )
    return table
