"""Enumeration: every prefix of every response to every prompt, as arrays.

Shapes: P prompts, V vocabulary, T horizon, N contexts (prefixes at which a token is sampled), B complete
responses, M members.

Token 0 ends a response; a response of T tokens is cut. Level t holds the contexts after t response tokens, P (V-1)^t
of them, children in order of (parent, token), so ancestors are found by integer division. An *edge* is a context
and its next token; a response is a path of at most T edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from firstorder.core.errors import SizeError

from . import noise
from .config import Sim


@dataclass(frozen=True, kw_only=True)
class Tree:
    """All contexts and all complete responses.

    Args:
        prompts: int64 `[P, prompt_length]`.
        vocab, horizon: V and T.
        levels: contexts of each level, P (V-1)^t.
        prompt_keys: int64 `[prompt_length, P]` hash of each prompt prefix.
        keys: one int64 `[N_t]` a level, hash of each context.
        path: int32 `[B, T]`, edge index (context · V + token) of each token of each response; 0 off the mask.
        mask: bool `[B, T]`.
        prompt: int64 `[B]`, the prompt answered.
        cut: bool `[B]`, ended by the horizon.
    """

    prompts: Tensor
    vocab: int
    horizon: int
    levels: tuple[int, ...]
    prompt_keys: Tensor
    keys: tuple[Tensor, ...] = field(repr=False)
    path: Tensor = field(repr=False)
    mask: Tensor = field(repr=False)
    prompt: Tensor = field(repr=False)
    cut: Tensor = field(repr=False)

    @property
    def contexts(self) -> int:
        """N, the number of contexts."""
        return sum(self.levels)

    @property
    def tokens(self) -> Tensor:
        """Tokens of each response, int64 `[B, T]`, 0 off the mask."""
        return torch.where(self.mask, self.path % self.vocab, 0).long()

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, `[B]`."""
        return self.mask.sum(-1)


def count(sim: Sim) -> int:
    """Contexts of the tree that `sim` describes."""
    branches, depth = sim.vocab - 1, sim.horizon
    return sim.prompts * (depth if branches == 1 else (int(branches**depth) - 1) // (branches - 1))


def plant(sim: Sim, prompts: Tensor) -> Tree:
    """Enumerate the tree of the given prompts, int64 `[P, prompt_length]`."""
    size, v, t = prompts.shape[0], sim.vocab, sim.horizon
    levels = tuple(size * (v - 1) ** depth for depth in range(t))
    prompt_keys = _prompt_keys(prompts)
    keys = [prompt_keys[-1]]
    for _ in range(1, t):
        keys.append(noise.combine(keys[-1][:, None], torch.arange(1, v)).flatten())
    paths, masks, owners, cuts = [], [], [], []
    for depth in range(t):
        last = (0,) if depth < t - 1 else tuple(range(v))
        for token in last:
            paths.append(_paths(levels, v, t, depth, token))
            masks.append((torch.arange(t) <= depth).expand(levels[depth], t))
            owners.append(torch.arange(levels[depth]) // (v - 1) ** depth)
            cuts.append(torch.full((levels[depth],), token != 0))
    path, mask = torch.cat(paths), torch.cat(masks)
    return Tree(
        prompts=prompts,
        vocab=v,
        horizon=t,
        levels=levels,
        prompt_keys=prompt_keys,
        keys=tuple(keys),
        path=torch.where(mask, path, 0),
        mask=mask,
        prompt=torch.cat(owners),
        cut=torch.cat(cuts),
    )


def responses(tree: Tree, cut: slice) -> Tree:
    """The same contexts with some of the responses; sums over responses add up over such trees."""
    return replace(tree, path=tree.path[cut], mask=tree.mask[cut], prompt=tree.prompt[cut], cut=tree.cut[cut])


def chunks(tree: Tree, members: int) -> Iterator[slice]:
    """Slices of the responses, small enough for M members that sums over them take little memory."""
    size = max(1, CHUNK_TOKENS // (tree.horizon * members))
    return (slice(start, start + size) for start in range(0, len(tree.path), size))


def gather(edges: Tensor, tree: Tree) -> Tensor:
    """Per-edge values `[M, N, V]` along every response, `[M, B, T]`, 0 off the mask."""
    return torch.where(tree.mask, edges.flatten(1)[:, tree.path.long()], 0.0)


def gather_contexts(values: Tensor, tree: Tree) -> Tensor:
    """Per-context values `[M, N]` along every response, `[M, B, T]`, 0 off the mask."""
    return torch.where(tree.mask, values[:, tree.path.long() // tree.vocab], torch.zeros((), dtype=values.dtype))


def scatter(values: Tensor, tree: Tree) -> Tensor:
    """The adjoint of `gather`: token values `[M, B, T]` added up on their edges, `[M, N, V]`."""
    edges = torch.zeros(values.shape[0], tree.contexts * tree.vocab, dtype=values.dtype)
    edges.index_add_(1, tree.path.flatten().long(), torch.where(tree.mask, values, 0.0).flatten(1))
    return edges.view(-1, tree.contexts, tree.vocab)


def reach(logp: Tensor, tree: Tree) -> Tensor:
    """Probability of each context under a policy with edge log-probs `[M, N, V]`, prompts equally likely; `[M, N]`."""
    size = tree.levels[0]
    level = torch.full((logp.shape[0], size), -math.log(size), dtype=torch.float64)
    found, offset = [level], 0
    for n in tree.levels[:-1]:
        level = (level[..., None] + logp[:, offset : offset + n, 1:]).flatten(1)
        found.append(level)
        offset += n
    return torch.cat(found, dim=1).exp()


def check_size(sim: Sim, members: int, available: int) -> None:
    """Refuse a tree that does not fit, before anything is allocated.

    Args:
        sim: the sizes.
        members: ensemble members held at once.
        available: bytes of free memory.

    Raises:
        SizeError: with the number of contexts, the bytes and a horizon that fits.
    """
    if bytes_needed(sim, members) <= available:
        return
    fits = 0
    while bytes_needed(sim.model_copy(update={"horizon": fits + 1}), members) <= available:
        fits += 1
    remedy = f"lower sim.horizon to {fits}, or sim.vocab or sim.prompts" if fits else "lower sim.prompts or sim.vocab"
    raise SizeError(
        f"sim.prompts x (sim.vocab - 1)^depth gives {_short(count(sim))} contexts at sim.horizon = {sim.horizon}, "
        f"about {_short(bytes_needed(sim, members) >> 30)} GiB, but {available / 2**30:.1f} GiB are free; {remedy}"
    )


def bytes_needed(sim: Sim, members: int) -> int:
    """Estimated peak bytes of an exact measurement, fitted to measured peaks (docs/benchmarks.md).

    Per context: what the engine passes keep, and the states that two graphs hold. Per response: its path. And the
    working space of two graphs over the contexts that are run at once.
    """
    contexts, experts = count(sim), sim.experts * sim.expert_width
    kept = 8 * (8 * (sim.vocab + (2 + sim.experts) * sim.layers) + 10 * sim.layers * sim.width)
    response = 5 * sim.horizon + 16
    working = 2 * 8 * sim.layers * (6 * experts + 8 * sim.width)
    return contexts * (members * kept + sim.vocab * response) + working * min(members * contexts, WORKING_ROWS)


CHUNK_TOKENS = 1 << 21  # members x responses x tokens that are weighted at once
WORKING_ROWS = 3 << 15  # contexts whose graph is alive at once before checkpointing bounds it


def _short(n: int) -> str:
    """A count of any size in a few characters."""
    return f"{n:,}" if n < 10**9 else f"10^{int(n.bit_length() * math.log10(2))}"


def _prompt_keys(prompts: Tensor) -> Tensor:
    keys = [noise.mix(prompts[:, 0])]
    for column in prompts.T[1:]:
        keys.append(noise.combine(keys[-1], column))
    return torch.stack(keys)


def _paths(levels: tuple[int, ...], v: int, t: int, depth: int, token: int) -> Tensor:
    """Edges `[N_depth, T]` of the responses that take `token` at each context of a level."""
    node = torch.arange(levels[depth])
    path = torch.zeros(levels[depth], t, dtype=torch.int32)
    path[:, depth] = (sum(levels[:depth]) + node) * v + token
    for back in range(depth - 1, -1, -1):
        node, child = node // (v - 1), node % (v - 1)
        path[:, back] = (sum(levels[:back]) + node) * v + child + 1
    return path
