"""Enumeration: every prefix of every response to every prompt, as arrays.

Shapes: P prompts, V vocabulary, T horizon, N contexts (prefixes at which a token is sampled), B complete
responses, M members.

Token 0 ends a response, where the task has an end token; a response of T tokens is cut. Level t holds the contexts
after t response tokens, P W^t of them with W = V - 1 tokens to go on after, or V without an end token; children are in
order of (parent, token), so ancestors are found by integer division. An *edge* is a context and its next token; a
response is a path of at most T edges.

An environment's answer is a function of what was said, so it branches nothing: it stands between a response token and
the context that it leads to. What an engine runs to get to a context from its parent is called its *lead*: the prompt
at level 0, after it a response token and, where one follows, the answer. S tokens lead to a context.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as nn

from firstorder.core.tasks import Episodes
from firstorder.sim.model import noise
from firstorder.sim.model.policy import Model
from firstorder.sim.tasks.contexts import Contexts
from firstorder.sim.tasks.task import SimTask, converse, heard

from . import forward, levels
from .edges import Given, Pass, Routes
from .levels import Levels
from .world import Near, Responses, Rows, chunks, gather


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A `World` of all contexts and all complete responses.

    Args:
        task: whose prompts they answer.
        rows: int64 `[P]`, which of the task's prompts.
        opening: int64 `[P, prompt_length]`, their tokens.
        widths: contexts of each level, P W^t.
        leads: one int64 `[S_t, N_t]` a level, the tokens that lead to each context.
        hashes: one int64 `[S_t, N_t]` a level, of the prefix that ends in each of those; the last is the context's.
        path: int32 `[B, T]`, edge index (context · V + token) of each token of each response; 0 off the mask.
        mask: bool `[B, T]`.
        prompt: int64 `[B]`, the prompt answered.
        cut: bool `[B]`, ended by the horizon.
    """

    task: SimTask
    rows: Tensor
    opening: Tensor
    widths: tuple[int, ...]
    leads: tuple[Tensor, ...] = field(repr=False)
    hashes: tuple[Tensor, ...] = field(repr=False)
    path: Tensor = field(repr=False)
    mask: Tensor = field(repr=False)
    prompt: Tensor = field(repr=False)
    cut: Tensor = field(repr=False)
    exhaustive = True

    @property
    def prompts(self) -> int:
        """P."""
        return len(self.rows)

    @property
    def contexts(self) -> int:
        """N, the number of contexts."""
        return sum(self.widths)

    @property
    def vocab(self) -> int:
        """V."""
        return self.task.sim.vocab

    @property
    def horizon(self) -> int:
        """T."""
        return self.task.sim.horizon

    @cached_property
    def every(self) -> Responses:
        """All responses with what they earn."""
        nothing = torch.zeros(len(self.path), dtype=torch.float64)
        whole = Responses(
            path=self.path, mask=self.mask, prompt=self.prompt, rewards=nothing, vocab=self.vocab, sampled=False
        )
        rewards = torch.cat([self.task.verify(episodes(self, part)) for part in chunks(whole, 1)])
        return replace(whole, rewards=rewards)

    @cached_property
    def levels(self) -> Tensor:
        """The distinct rewards, ascending, `[n]`."""
        levels: Tensor = torch.unique(self.every.rewards)
        return levels

    @cached_property
    def table(self) -> Contexts:
        """What contexts are, where they merge."""
        return self.task.contexts(self.rows)

    @cached_property
    def place(self) -> Tensor:
        """Which row of the table each context is, int64 `[N]`."""
        level = self.table.start
        found = [level]
        for _ in self.widths[1:]:
            level = self.table.follow[level, self.task.sim.first :].flatten()
            found.append(level)
        return torch.cat(found)

    @cached_property
    def shape(self) -> Levels:
        """Its levels, with what every response earns where it ends."""
        every = self.every
        ends = every.path.gather(1, every.lengths[:, None] - 1)[:, 0].long()
        terminal = torch.full((self.contexts * self.vocab,), -1, dtype=torch.int64)
        terminal[ends] = torch.searchsorted(self.levels, every.rewards)
        prompt = torch.cat([torch.arange(n) // (n // self.prompts) for n in self.widths])
        first = self.task.sim.first
        return Levels(widths=self.widths, first=first, terminal=terminal.view(-1, self.vocab), prompt=prompt)

    @property
    def reachable(self) -> Tensor:
        """Those below it."""
        return torch.eq(self.shape.prompt, torch.arange(self.prompts)[:, None])

    @property
    def keys(self) -> Routes:
        """`World.keys`."""
        if not self.task.sim.carries:
            of_level = torch.split(self.table.keys[self.place], list(self.widths))
            leads = (keys.expand(len(lead) - 1, -1) for keys, lead in zip(of_level, self.leads, strict=True))
            return Routes(contexts=torch.cat(of_level), leads=tuple(leads))
        return Routes(contexts=torch.cat([keys[-1] for keys in self.hashes]), leads=tuple(k[:-1] for k in self.hashes))

    def run(self, model: Model, replay: Given | None = None) -> Pass:
        """Every context, level by level, or looked up where a policy carries no state."""
        return (forward.run if self.task.sim.carries else forward.look_up)(model, self, replay)

    def states(self, model: Model, replay: Given | None = None) -> Tensor:
        """`World.states`."""
        return forward.states(model, self, replay)

    def earned(self, kernel: Tensor, by_length: Tensor | None = None) -> Tensor:
        """`World.earned`."""
        hot = self.shape.terminal == torch.arange(len(self.levels))[:, None, None]
        return levels.ahead(self.shape, kernel, (hot * self.shape.ends(by_length))[None])[1]

    def through(
        self, before: Tensor, after: Tensor, worth: Tensor, by_length: Tensor | None = None, near: Near | None = None
    ) -> Tensor:
        """`World.through`."""
        shape = self.shape
        of_edge = worth[:, :, shape.terminal.clamp(min=0), shape.prompt[:, None]] * shape.ends(by_length)
        found, _ = levels.ahead(shape, after, of_edge)
        if near is not None:
            found = levels.nearer(shape, near.kernel, of_edge, found, near.steps)
        edges = [d[:, None, :, None] * b for d, b in zip(levels.came(shape, before), found, strict=True)]
        return torch.cat(edges, dim=2)

    def visits(self, kernel: Tensor) -> Tensor:
        """`World.visits`: how likely each context is."""
        return torch.cat(levels.came(self.shape, kernel), dim=1)

    def by_step(self, kernel: Tensor, x: Tensor) -> Tensor:
        """`World.by_step`."""
        came, parts = levels.came(self.shape, kernel), self.shape.split(x, -1)
        return torch.stack([(d * part).sum(-1) for d, part in zip(came, parts, strict=True)], dim=-1)

    def expansion(self, kernel: Tensor, change: Tensor, order: int) -> Tensor:
        """`World.expansion`."""
        ends = self.shape.terminal
        worth = torch.where(ends >= 0, self.levels[ends.clamp(min=0)], 0.0)
        return levels.expansion(self.shape, kernel, change, worth, order).mean(-1)

    def squares(self, kernel: Tensor, x: Tensor, by_length: Tensor | None = None) -> Tensor:
        """`World.squares`, over every response."""
        every, count = self.every, len(self.levels)
        cell = every.prompt + self.prompts * torch.searchsorted(self.levels, every.rewards)
        f = torch.ones(()) if by_length is None else by_length[every.lengths]
        found = torch.zeros(len(x), count * self.prompts, dtype=torch.float64)
        share = gather(kernel.log(), every).sum(-1).exp() * f
        found.index_add_(1, cell, share * gather(x, every).sum(-1).square())
        return found.view(len(x), count, self.prompts)

    def log_mass(self, kernel: Tensor) -> Tensor:
        """`World.log_mass`."""
        return self.earned(kernel).sum(1).mean(-1).log()

    def run_rows(self, routes: Routes, kernel: Tensor) -> Rows:
        """Those of every lead, level by level, and in a level place by place."""
        ids, before, weights = [], [], []
        last: Tensor | None = None
        came = levels.came(self.shape, kernel)
        contexts = self.shape.split(routes.contexts, 1)
        for lead, context, weight in zip(routes.leads, contexts, came, strict=True):
            whole = torch.cat([lead, context[:, None]], dim=1)
            first = torch.full_like(whole[:, :1], -1) if last is None else self._below(last)[:, None]
            ids.append(whole.flatten(1, 2))
            before.append(torch.cat([first, whole[:, :-1]], dim=1).flatten(1, 2))
            weights.append(weight[:, None].expand(-1, whole.shape[1], -1).flatten(1))
            last = context
        return Rows(ids=torch.cat(ids, dim=1), before=torch.cat(before, dim=1), weight=torch.cat(weights, dim=1))

    def responses(self, logp: Tensor) -> Responses:
        """All of them, whatever the policy."""
        return self.every

    def _below(self, of_context: Tensor) -> Tensor:
        """What each context hands to those below it, `[M, N_t, ...]` to `[M, N_{t+1}, ...]`."""
        return of_context.repeat_interleave(self.vocab - self.task.sim.first, 1)


def plant(task: SimTask, rows: Tensor) -> Tree:
    """Enumerate the responses to the task's prompts `rows`, int64 `[P]`."""
    size, v, t, first = len(rows), task.sim.vocab, task.sim.horizon, task.sim.first
    wide = v - first
    widths = tuple(size * wide**depth for depth in range(t))
    leads = _leads(task, rows, widths)
    paths, masks, owners, cuts = [], [], [], []
    for depth in range(t):
        tokens = torch.arange(first if depth < t - 1 else v)
        paths.append(_paths(widths, v, t, depth, tokens))
        masks.append((torch.arange(t) <= depth).expand(len(paths[-1]), t))
        owners.append((torch.arange(widths[depth]) // wide**depth).repeat(len(tokens)))
        cuts.append((tokens >= first).repeat_interleave(widths[depth]))
    path, mask = torch.cat(paths), torch.cat(masks)
    return Tree(
        task=task,
        rows=rows,
        opening=task.prompts(rows).tokens,
        widths=widths,
        leads=leads,
        hashes=_keys(leads),
        path=torch.where(mask, path, 0),
        mask=mask,
        prompt=torch.cat(owners),
        cut=torch.cat(cuts),
    )


def episodes(tree: Tree, part: Responses) -> Episodes:
    """Responses of the tree with their prompts and the environment's answers, `[B, L]`."""
    return converse(tree.task, tree.rows[part.prompt], part.tokens, part.mask)


def _leads(task: SimTask, rows: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
    """What leads to the contexts of each level, int64 `[S_t, N_t]`; an environment hears all that was said before."""
    opening, children = task.prompts(rows), torch.arange(task.sim.first, task.sim.vocab)
    tokens, mask, leads = opening.tokens, opening.mask, [opening.tokens.T]
    for depth in range(1, len(widths)):
        lead = children.repeat(widths[depth - 1])[:, None]
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


def _paths(widths: tuple[int, ...], v: int, t: int, depth: int, tokens: Tensor) -> Tensor:
    """Edges `[len(tokens) · N_depth, T]` of the responses that take each of `tokens` at each context of a level."""
    wide = widths[1] // widths[0] if len(widths) > 1 else 1
    node = torch.arange(widths[depth]).repeat(len(tokens))
    path = torch.zeros(len(node), t, dtype=torch.int32)
    path[:, depth] = (sum(widths[:depth]) + node) * v + tokens.repeat_interleave(widths[depth])
    for back in range(depth - 1, -1, -1):
        node, child = node // wide, node % wide
        path[:, back] = (sum(widths[:back]) + node) * v + child + v - wide
    return path
