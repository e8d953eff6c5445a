"""The sums of a graph against a slow second implementation, on random tables whose prompts share contexts."""

import itertools
import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.edges import Pass, Routes
from firstorder.sim.exact.graph import Graph
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.scene import Scene
from firstorder.sim.exact.world import Near
from firstorder.sim.tasks import recursion, task_of
from firstorder.sim.tasks.contexts import Contexts

Table = runpy.run_path(str(Path(__file__).with_name("graph_reference.py")))["Table"]
SEEDS = st.integers(0, 2**32)
LEVELS = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)


def drawn(seed, size=5, vocab=3, endings=2, horizon=5, prompts=2, start=None):
    """A random graph, and the same as the reference has it; rewards of three levels."""
    generator = torch.Generator().manual_seed(seed)
    rewards = LEVELS[torch.arange(size + endings)[torch.randperm(size + endings, generator=generator)] % 3]
    contexts = Contexts(
        features=torch.eye(size, dtype=torch.float64),
        keys=torch.arange(size),
        start=torch.randint(0, size, (prompts,), generator=generator) if start is None else torch.tensor(start),
        follow=torch.randint(0, size + endings, (size, vocab), generator=generator),
        ends=rewards[size:],
        cut=rewards[:size],
    )
    task = task_of(Sim(world="graph", task="chain", vocab=6, positions=3, right=1, horizon=horizon))
    graph = Graph(task=task, table=contexts, horizon=horizon, samples=64)
    slow = Table(contexts.start.tolist(), contexts.follow.tolist(), rewards.tolist(), horizon)
    return graph, slow, generator


def policy(graph, generator, members=2, spread=1.0):
    shape = members, graph.contexts, graph.vocab
    return (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def numbers(graph, generator, members=2):
    return torch.randn(members, graph.contexts, graph.vocab, generator=generator, dtype=torch.float64)


def lengths(horizon):
    return (1 + torch.arange(horizon + 1).double()) ** -0.7


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("by_length", [None, lengths(5)])
def test_what_is_earned(seed, by_length, same):
    graph, slow, generator = drawn(seed)
    kernel = policy(graph, generator).exp() * (1 + numbers(graph, generator).abs())
    f = None if by_length is None else by_length.tolist()
    same(
        graph.earned(kernel, by_length), [[slow.earned(k, level, f) for level in slow.levels] for k in kernel.tolist()]
    )


@pytest.mark.parametrize("endings", [0, 1, 3])
@pytest.mark.parametrize("steps", [0, 1, 3, 9])
@pytest.mark.parametrize("start", [[0, 1], [2]])
def test_what_passes_an_edge(endings, steps, start, same):
    """With prompts that share contexts, and with one, which shares none."""
    graph, slow, generator = drawn(endings + steps, size=4, endings=endings, horizon=4, start=start)
    before, after, close = (policy(graph, generator).exp() * (1 + numbers(graph, generator).abs()) for _ in range(3))
    worth = torch.rand(2, 3, len(slow.levels), len(start), generator=generator, dtype=torch.float64)
    worth[:, 1] = 0.0
    f = lengths(4)
    near = Near(kernel=close, steps=steps) if steps else None
    found = graph.through(before, after, worth, f, near)
    for m, c in itertools.product(range(2), range(3)):
        of = [dict(zip(slow.levels, x, strict=True)) for x in worth[m, c].T.tolist()]
        kernels = before[m].tolist(), after[m].tolist()
        same(found[m, c], slow.through(*kernels, of, f.tolist(), close[m].tolist(), steps))


@pytest.mark.parametrize("seed", range(2))
def test_visits_steps_expansion_squares_and_mass(seed, same):
    graph, slow, generator = drawn(seed)
    kernel, change, x = policy(graph, generator).exp(), numbers(graph, generator), numbers(graph, generator)
    at, every = x[..., 0], list(enumerate(kernel.tolist()))
    same(graph.visits(kernel), [slow.visits(k) for _, k in every])
    same(graph.by_step(kernel, at), [slow.by_step(k, at[m].tolist()) for m, k in every])
    same(graph.expansion(kernel, change, 4), [slow.expansion(k, change[m].tolist(), 4) for m, k in every])
    f = lengths(5)
    squares = [[slow.squares(k, x[m].tolist(), level, f.tolist()) for level in slow.levels] for m, k in every]
    same(graph.squares(kernel, x, f), squares)
    grown = kernel * (1 + change.abs())
    same(graph.log_mass(grown), [slow.log_mass(k) for k in grown.tolist()])


def test_a_mass_beyond_any_float_has_a_logarithm():
    """Tokens that all weigh w sum to (w V)^T whatever the table, without endings."""
    graph, *_ = drawn(0, endings=0, horizon=5000)
    kernel = torch.full((1, graph.contexts, graph.vocab), 2.0, dtype=torch.float64)
    assert float(graph.log_mass(kernel)) == pytest.approx(5000 * math.log(6), rel=1e-12)


def test_rows_that_an_engine_runs(same):
    graph, slow, generator = drawn(3)
    kernel = policy(graph, generator).exp()
    ids = torch.arange(graph.contexts, dtype=torch.int16)[None, :, None, None].expand(2, -1, -1, -1)
    rows = graph.run_rows(Routes(contexts=ids, leads=()), kernel)
    for m, k in enumerate(kernel.tolist()):
        found = {}
        ways = zip(
            rows.before[m, :, 0, 0].tolist(), rows.ids[m, :, 0, 0].tolist(), rows.weight[m].tolist(), strict=True
        )
        for before, at, weight in ways:
            if before >= 0 and weight:
                found[before, at] = found.get((before, at), 0.0) + weight
        expected = slow.flow(k)
        assert found.keys() == expected.keys()
        same([found[way] for way in expected], list(expected.values()))
        assert float(rows.weight[m, : graph.prompts].sum()) == pytest.approx(1.0)


def scene(graph, generator):
    """Three policies on a graph, without engines: what a token's weight reads."""

    def said(logp):
        routes = Routes(contexts=torch.zeros(len(logp), graph.contexts, 1, 1, dtype=torch.int16), leads=())
        nothing = torch.zeros(len(logp), graph.contexts, 1, 1)
        return Pass(logp=logp, routes=routes, gates=routes, live=routes, margin=nothing[..., 0], router_logp=nothing)

    mu = policy(graph, generator)
    old, theta = ((mu + 0.3 * numbers(graph, generator)).log_softmax(-1) for _ in range(2))
    passes = {"disabled": said(theta)}
    return Scene(
        world=graph,
        weights={},
        pi=None,
        mu_old=said(mu),
        mu=said(mu),
        old={"disabled": said(old)},
        target=passes,
        sent=said(mu).routes,
        stale=True,
    )


def plain(own, rest):
    return own


def group_mean(own, rest):
    return 0.0 if all(r == own for r in rest) else own - (own + sum(rest)) / (1 + len(rest))


def held(edge, a, theta_mu, theta_old):
    """MiniRL's mask: a token whose ratio theta/old is already past the bound on its advantage's side."""
    moved = theta_old(edge)
    return 0.0 if (a > 0 and moved > 1.27) or (a < 0 and moved < 0.8) else theta_mu(edge)


GROUP = "schedule.group_size=3"
WEIGHTS = {
    ("reinforce", "schedule.group_size=1"): (lambda edges, t, a, r, _: 1.0, plain, 1),
    ("minirl", GROUP): (lambda edges, t, a, *ratios: held(edges[t], a, *ratios), group_mean, 3),
    ("minirl-length-norm", GROUP): (
        lambda edges, t, a, *ratios: held(edges[t], a, *ratios) / len(edges),
        group_mean,
        3,
    ),
    ("minirl-no-clip", "ratio.span=prefix", GROUP): (
        lambda edges, t, a, r, _: math.prod(map(r, edges[: t + 1])),
        group_mean,
        3,
    ),
    ("minirl-no-clip", "ratio.span=sequence", GROUP): (
        lambda edges, t, a, r, _: math.prod(map(r, edges)),
        group_mean,
        3,
    ),
    ("minirl-no-clip", "ratio.span=forward", "ratio.steps=3", GROUP): (
        lambda edges, t, a, r, _: math.prod(map(r, edges[t : t + 3])),
        group_mean,
        3,
    ),
}


@pytest.mark.parametrize("recipe", WEIGHTS)
def test_the_expected_update_by_listing_responses_and_groups(recipe, make_recipe, same):
    graph, slow, generator = drawn(5, size=4, horizon=4)
    built, (weight, baseline, size) = scene(graph, generator), WEIGHTS[recipe]
    found = Measurement(scene=built, recipe=make_recipe(*recipe)).coefficients()
    passes = built.mu_old, built.old["disabled"], built.target["disabled"]
    for m in range(2):
        mu, old, theta = (one.logp[m].exp().tolist() for one in passes)
        ratios = [lambda edge, of=of, to=theta: to[edge[0]][edge[1]] / of[edge[0]][edge[1]] for of in (mu, old)]
        expected = slow.coefficients(mu, lambda *token, r=ratios: weight(*token, *r), size, baseline)
        same(found[m], expected)


def test_slopes_are_differences_of_values():
    """∂J/∂log π of every edge, log π free of its normalisation."""
    graph, _, generator = drawn(7)
    logp = policy(graph, generator, members=1)
    found, step = objectives.slopes(logp, graph), 1e-5
    unit = torch.eye(logp.numel(), dtype=torch.float64).view(-1, *logp.shape[1:])
    ahead, back = (objectives.value(logp + sign * step * unit, graph) for sign in (1, -1))
    torch.testing.assert_close(found.flatten(), (ahead - back) / (2 * step), rtol=1e-8, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(2, 4), st.integers(0, 3), st.integers(1, 9))
def test_what_holds_of_any_policy(seed, size, vocab, endings, horizon):
    if size + endings < 2:
        size = 2
    graph, _, generator = drawn(seed, size, vocab, endings, horizon)
    logp = policy(graph, generator)
    kernel = logp.exp()
    one = torch.ones(())
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(graph.earned(kernel).sum(1), one.expand(2, graph.prompts).double(), **close)
    visits, x = graph.visits(kernel), numbers(graph, generator)[..., 0]
    torch.testing.assert_close(graph.by_step(kernel, x).sum(-1), (visits * x).sum(-1), **close)
    ones = torch.ones_like(x)
    alive = graph.by_step(kernel, ones)  # how likely each token is said, so that their sum is the mean length
    assert (alive.diff(dim=-1) <= 1e-12).all()
    torch.testing.assert_close(alive.sum(-1), visits.sum(-1), **close)
    mean = graph.through(kernel, kernel, torch.ones(2, 1, len(graph.levels), graph.prompts, dtype=torch.float64))[:, 0]
    torch.testing.assert_close(mean, visits[..., None].expand_as(mean), **close)
    free = logp.clone().requires_grad_()
    (score,) = torch.autograd.grad((visits[..., None] * kernel * free.log_softmax(-1)).sum(), free)
    torch.testing.assert_close(score, torch.zeros_like(score), **close)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_one_more_step_applies_the_kernel_once(seed, horizon):
    """Of a table without endings: what is earned at T + 1 is the kernel times what is earned at T."""
    graph, _, generator = drawn(seed, endings=0, prompts=5, horizon=horizon, start=range(5))
    kernel = policy(graph, generator).exp()
    shorter, longer = (replace(graph, horizon=t).earned(kernel) for t in (horizon, horizon + 1))
    expected = torch.einsum("mcv,mncv->mnc", kernel, shorter[..., graph.table.follow])
    torch.testing.assert_close(longer, expected, rtol=1e-12, atol=1e-14)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_the_order_of_contexts_is_a_matter_of_names(seed):
    graph, _, generator = drawn(seed)
    size, table = graph.contexts, graph.table
    new = torch.randperm(size, generator=generator)  # the row that each context gets
    old, all_new = new.argsort(), torch.cat([new, torch.arange(size, size + len(table.ends))])
    renamed = replace(
        graph,
        table=replace(
            table,
            features=table.features[old],
            keys=table.keys[old],
            start=new[table.start],
            follow=all_new[table.follow][old],
            cut=table.cut[old],
        ),
    )
    logp = policy(graph, generator)
    kernel, change, f = logp.exp(), numbers(graph, generator), lengths(graph.horizon)
    worth = torch.rand(2, 2, len(graph.levels), graph.prompts, generator=generator, dtype=torch.float64)
    pairs = (
        (graph.earned(kernel, f), renamed.earned(kernel[:, old], f)),
        (graph.through(kernel, kernel, worth, f)[:, :, old], renamed.through(kernel[:, old], kernel[:, old], worth, f)),
        (graph.visits(kernel)[:, old], renamed.visits(kernel[:, old])),
        (graph.expansion(kernel, change, 3), renamed.expansion(kernel[:, old], change[:, old], 3)),
    )
    for one, other in pairs:
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-14)
    assert torch.equal(renamed.responses(logp[:, old]).tokens, graph.responses(logp).tokens)


@pytest.mark.parametrize("start", [[0, 1], [2]])
@pytest.mark.parametrize("kept", ["KEPT", "CACHED"])
def test_blocks_of_steps_change_nothing(start, kept, monkeypatch):
    graph, _, generator = drawn(11, horizon=50, start=start)
    kernel = policy(graph, generator).exp()
    worth = torch.rand(2, 2, len(graph.levels), len(start), generator=generator, dtype=torch.float64)
    near, x = Near(kernel=kernel * 1.1, steps=4), numbers(graph, generator)[..., 0]

    def found():
        return (
            graph.through(kernel, kernel * 0.9, worth, lengths(50), near),
            graph.through(kernel, kernel, worth),
            graph.visits(kernel),
            graph.by_step(kernel, x),
        )

    whole = found()
    monkeypatch.setattr(recursion, kept, 1)
    for one, other in zip(found(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_sample_walks_as_its_policy_does():
    """How often each edge is taken, in responses of two members, within five standard errors of what is expected."""
    graph, _, generator = drawn(2, endings=1, horizon=6)
    many, logp = replace(graph, samples=20_000), policy(graph, generator)
    sample = many.responses(logp)
    table, place = graph.table, table_ends(graph, sample)
    assert torch.equal(sample.rewards, table.rewards[place])
    assert torch.equal(sample.mask, sample.mask.cummin(-1).values)
    taken = torch.zeros(2, len(sample), graph.contexts * graph.vocab, dtype=torch.float64)
    taken.scatter_add_(2, sample.path.long(), sample.mask.double())
    kernel = logp.exp()
    expected = (graph.visits(kernel)[..., None] * kernel).flatten(1)
    error = taken.std(1) / len(sample) ** 0.5
    assert ((taken.mean(1) - expected).abs() <= 5 * error + 1e-15).all()


def table_ends(graph, sample):
    """Where each response comes to, token by token."""
    place = graph.table.start[sample.prompt]
    for tokens, at, said in zip(
        sample.tokens.unbind(-1), sample.contexts.unbind(-1), sample.mask.unbind(-1), strict=True
    ):
        assert torch.equal(at[said], place[said])
        place = torch.where(said, graph.table.follow[place.clamp(max=graph.contexts - 1), tokens], place)
    return place
