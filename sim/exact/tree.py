"""Enumeration: every prefix of every response to every prompt, as arrays.

Shapes: P prompts, V vocabulary, T horizon, N contexts (prefixes at which a token is sampled), B complete
responses, M members.

Token 0 ends a response; a response of T tokens is cut. Level t holds the contexts after t response tokens, P (V-1)^t
of them, children in order of (parent, token), so ancestors are found by integer division. An *edge* is a context
and its next token; a response is a path of at most T edges.

An environment's answer is a function of what was said, so it branches nothing: it stands between a response token and
the context that it leads to. What an engine runs to get to a context from its parent is called its *lead*: the prompt
at level 0, after it a response token and, where one follows, the answer. S tokens lead to a context.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as nn

from firstorder.core.errors import SizeError
from firstorder.core.tasks import Episodes
from firstorder.sim.config import Sim
from firstorder.sim.model import noise
from firstorder.sim.tasks import task_of
from firstorder.sim.tasks.task import SimTask, converse, heard


@dataclass(frozen=True, kw_only=True)
class Tree:
    """All contexts and all complete responses.

    Args:
        task: whose prompts they answer.
        rows: int64 `[P]`, which of the task's prompts.
        prompts: int64 `[P, prompt_length]`.
        vocab, horizon: V and T.
        levels: contexts of each level, P (V-1)^t.
        leads: one int64 `[S_t, N_t]` a level, the tokens that lead to each context.
        keys: one int64 `[S_t, N_t]` a level, hash of the prefix that ends in each of those; the last is the context's.
        path: int32 `[B, T]`, edge index (context · V + token) of each token of each response; 0 off the mask.
        mask: bool `[B, T]`.
        prompt: int64 `[B]`, the prompt answered.
        cut: bool `[B]`, ended by the horizon.
    """

    task: SimTask
    rows: Tensor
    prompts: Tensor
    vocab: int
    horizon: int
    levels: tuple[int, ...]
    leads: tuple[Tensor, ...] = field(repr=False)
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
    return sim.prompts * _series(sim.vocab - 1, sim.horizon)


def answers(sim: Sim) -> int:
    """Tokens that environments say in that tree."""
    layout = task_of(sim).layout
    turns = (sim.horizon - 1) // layout.turn
    return sim.prompts * layout.answer * (_series(power(sim.vocab - 1, layout.turn), turns + 1) - 1)


def plant(task: SimTask, rows: Tensor) -> Tree:
    """Enumerate the responses to the task's prompts `rows`, int64 `[P]`."""
    size, v, t = len(rows), task.sim.vocab, task.sim.horizon
    levels = tuple(size * (v - 1) ** depth for depth in range(t))
    leads = _leads(task, rows, levels)
    paths, masks, owners, cuts = [], [], [], []
    for depth in range(t):
        tokens = torch.arange(1 if depth < t - 1 else v)
        paths.append(_paths(levels, v, t, depth, tokens))
        masks.append((torch.arange(t) <= depth).expand(len(paths[-1]), t))
        owners.append((torch.arange(levels[depth]) // (v - 1) ** depth).repeat(len(tokens)))
        cuts.append((tokens != 0).repeat_interleave(levels[depth]))
    path, mask = torch.cat(paths), torch.cat(masks)
    return Tree(
        task=task,
        rows=rows,
        prompts=leads[0].T,
        vocab=v,
        horizon=t,
        levels=levels,
        leads=leads,
        keys=_keys(leads),
        path=torch.where(mask, path, 0),
        mask=mask,
        prompt=torch.cat(owners),
        cut=torch.cat(cuts),
    )


def responses(tree: Tree, cut: slice) -> Tree:
    """The same contexts with some of the responses; sums over responses add up over such trees."""
    return replace(tree, path=tree.path[cut], mask=tree.mask[cut], prompt=tree.prompt[cut], cut=tree.cut[cut])


def episodes(tree: Tree) -> Episodes:
    """The responses with their prompts and the environment's answers, `[B, L]`."""
    return converse(tree.task, tree.rows[tree.prompt], tree.tokens, tree.mask)


def chunks(tree: Tree, members: int) -> list[slice]:
    """Slices of the responses, small enough for M members that sums over them take little memory."""
    size = max(1, CHUNK_TOKENS // (tree.horizon * members))
    return [slice(start, start + size) for start in range(0, len(tree.path), size)]


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
    levels, offset = [level], 0
    for n in tree.levels[:-1]:
        level = (level[..., None] + logp[:, offset : offset + n, 1:]).flatten(1)
        levels.append(level)
        offset += n
    return torch.cat(levels, dim=1).exp()


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
        if count(sim) * sim.vocab > LARGEST_INDEX:
            raise SizeError(
                f"sim.prompts x (sim.vocab - 1)^depth x sim.vocab gives {_short(count(sim) * sim.vocab)} edges at "
                f"sim.horizon = {sim.horizon}, and they are counted in 32 bits; lower sim.horizon or "
                "sim.prompts"
            )
        return
    fits = bisect_right(
        range(1, min(sim.horizon, 1 << 60)),
        available,
        key=lambda horizon: bytes_needed(sim.model_copy(update={"horizon": horizon}), members),
    )
    remedy = f"lower sim.horizon to {fits}, or sim.vocab or sim.prompts" if fits else "lower sim.prompts or sim.vocab"
    raise SizeError(
        f"sim.prompts x (sim.vocab - 1)^depth gives {_short(count(sim))} contexts at sim.horizon = {sim.horizon}, "
        f"about {_short(bytes_needed(sim, members) >> 30)} GiB, but {available / 2**30:.1f} GiB are free; {remedy}"
    )


def bytes_needed(sim: Sim, members: int) -> int:
    """Estimated peak bytes of an exact measurement, fitted to measured peaks (docs/benchmarks.md).

    Per context: what the engine passes keep. Per context and token of an environment: the states that two graphs hold.
    Per response: its path. And the working space of two graphs over what is run at once.
    """
    contexts, experts = count(sim), sim.experts * sim.expert_width
    tokens = contexts + answers(sim)
    passes = 8 * 8 * (sim.vocab + (2 + sim.experts) * sim.layers)
    states = 8 * 10 * sim.layers * sim.width * tokens
    response = 5 * sim.horizon + 16
    working = 2 * 8 * sim.layers * (6 * experts + 8 * sim.width) * min(members * tokens, WORKING_ROWS)
    return contexts * (members * passes + sim.vocab * response) + members * states + working


CHUNK_TOKENS = 1 << 21  # members x responses x tokens that are weighted at once
LARGEST_INDEX = 2**31 - 1  # of an edge, which is an int32
MOST_DIGITS = 1 << 10  # binary ones, above which a count is only called large
WORKING_ROWS = 3 << 15  # tokens whose graph is alive at once before checkpointing bounds it


def _series(ratio: int, terms: int) -> int:
    """1 + r + r² + ..., the sum of the first `terms` powers."""
    return terms if ratio == 1 else (power(ratio, terms) - 1) // (ratio - 1)


def power(base: int, exponent: int) -> int:
    """base^exponent, or where that is beyond any memory a number that is too: its digits alone would take for ever."""
    return int(base ** min(exponent, MOST_DIGITS))


def _short(n: int) -> str:
    """A count of any size in a few characters."""
    if n < 10**9:
        return f"{n:,}"
    digits = int(n.bit_length() * math.log10(2))
    return f"10^{digits}" if digits < MOST_DIGITS * math.log10(2) else "far too many"


def _leads(task: SimTask, rows: Tensor, levels: tuple[int, ...]) -> tuple[Tensor, ...]:
    """What leads to the contexts of each level, int64 `[S_t, N_t]`; an environment hears all that was said before."""
    opening, children = task.prompts(rows), torch.arange(1, task.sim.vocab)
    tokens, mask, leads = opening.tokens, opening.mask, [opening.tokens.T]
    for depth in range(1, len(levels)):
        lead = children.repeat(levels[depth - 1])[:, None]
        if task.answer_length:
            rows, tokens, mask = (x.repeat_interleave(len(children), dim=0) for x in (rows, tokens, mask))
            tokens, mask = torch.cat([tokens, lead], dim=1), nn.pad(mask, (0, 1), value=True)
        if task.layout.answered(depth):
            answer = heard(task, rows, tokens, mask)
            tokens, mask = torch.cat([tokens, answer], dim=1), nn.pad(mask, (0, task.answer_length), value=False)
            lead = torch.cat([lead, answer], dim=1)
        leads.append(lead.T)
    return tuple(leads)


def _keys(leads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The hash of the prefix that ends in each token of `leads`."""
    key, keys = None, []
    for lead in leads:
        key = None if key is None else key.repeat_interleave(lead.shape[1] // len(key))
        row = []
        for tokens in lead:
            key = noise.extend(key, tokens)
            row.append(key)
        keys.append(torch.stack(row))
    return tuple(keys)


def _paths(levels: tuple[int, ...], v: int, t: int, depth: int, tokens: Tensor) -> Tensor:
    """Edges `[len(tokens) · N_depth, T]` of the responses that take each of `tokens` at each context of a level."""
    node = torch.arange(levels[depth]).repeat(len(tokens))
    path = torch.zeros(len(node), t, dtype=torch.int32)
    path[:, depth] = (sum(levels[:depth]) + node) * v + tokens.repeat_interleave(levels[depth])
    for back in range(depth - 1, -1, -1):
        node, child = node // (v - 1), node % (v - 1)
        path[:, back] = (sum(levels[:back]) + node) * v + child + 1
    return path
