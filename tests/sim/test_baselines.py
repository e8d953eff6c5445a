"""The best baseline of each class: a brute sum over responses, least squares, and every other baseline of the class."""

import pytest
import torch
from chains import taught

from firstorder.sim.exact.baselines import parabola
from firstorder.sim.exact.edge_variance import edge_variance
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.scores import directions
from firstorder.sim.exact.variance import group_variance

MODES = {"horizon": "disabled", "answer": "R3", "graded": "R2", "feedback": "R3"}
CLASSES = {"prompt": ("position", "context"), "position": ("time",), "context": ("time",), "time": ()}


@pytest.fixture(scope="module", params=MODES)
def found(request, make_scene):
    """The parabola of a graph, and the responses of the tree: their chance, reward and ρ s token by token."""
    mode = MODES[request.param]
    graph, tree = (make_scene(taught(request.param, world)) for world in ("graph", "tree"))
    x, paths = directions(graph, mode), tree.responses
    ratio = (tree.target[mode].logp.detach() - tree.mu_old.logp).exp()[0].flatten()
    context = tree.world.place[paths.contexts]
    scores = x[context, paths.tokens] * torch.where(paths.mask, ratio[paths.path.long()], 0.0)[..., None]
    return parabola(graph, mode, x), tree.measure[0], paths.rewards, scores, context


def square(found, b):
    _, chance, rewards, scores, context = found
    each = rewards[:, None] - b[torch.arange(context.shape[1]), context]
    return (chance * (each[..., None] * scores).sum(1).square().sum(-1)).sum()


def test_the_square_of_any_baseline_is_that_over_all_responses(found, same):
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(found[0].slope.shape, generator=generator, dtype=torch.float64)
    same(found[0].square(b), square(found, b), 1e-12)
    same(found[0].none, square(found, torch.zeros_like(b)), 1e-12)


def test_the_best_baseline_is_that_of_least_squares(found, same):
    """Over all (time, context): the normal equations from every pair of tokens of every response."""
    curve, chance, rewards, scores, context = found
    size, steps = curve.slope.shape[1], torch.arange(context.shape[1])
    place = steps * size + context
    a = torch.zeros(curve.slope.numel(), curve.slope.numel(), dtype=torch.float64)
    products = torch.einsum("btd,bud->btu", scores, scores) * chance[:, None, None]
    a.index_put_((place[:, :, None].expand_as(products), place[:, None].expand_as(products)), products, accumulate=True)
    c = torch.zeros(len(a), dtype=torch.float64)
    c.index_put_((place,), (products * rewards[:, None, None]).sum(-1), accumulate=True)
    same(a.diagonal(), curve.energy.flatten(), 1e-12)
    same(c, curve.slope.flatten(), 1e-12)
    same(a, a.diagonal().diag(), 1e-12)  # parts of different tokens are orthogonal
    used = a.diagonal() > 0
    best = torch.linalg.lstsq(a[used][:, used], c[used]).solution
    same(curve.best("time").flatten()[used], best, 1e-9)


def test_no_baseline_of_a_class_has_less_variance_than_its_best(found):
    curve, generator = found[0], torch.Generator().manual_seed(1)
    for of, wider in CLASSES.items():
        least = float(curve.square(curve.best(of)))
        others = [torch.zeros_like(curve.slope), curve.mean("prompt"), curve.mean(of), curve.best("prompt")]
        if of in ("position", "time"):
            others += [curve.published(), curve.published(proxy=True)]
        for _ in range(20):
            moved = torch.randn(curve.slope.shape, generator=generator, dtype=torch.float64)
            others.append(curve.best(of) + 0.1 * curve.best(of) * moved)
        if of != "time":
            others = others[:-20]  # moved each time by itself they are of the widest class
        assert all(least <= float(curve.square(b)) * (1 + 1e-12) for b in others)
        assert all(float(curve.square(curve.best(each))) <= least * (1 + 1e-12) for each in wider)


def test_means_over_all_responses(found, same):
    curve, chance, rewards, _, context = found
    same((curve.came * curve.values).sum(1)[0], (chance * rewards).sum(), 1e-12)
    at = torch.zeros(curve.came[0].shape, dtype=torch.float64).index_add_(0, context[:, 0], chance)
    same(curve.came[0], at, 1e-12)


@pytest.mark.parametrize("of", ["context", "prompt"])
def test_the_variance_of_an_update_with_a_baseline_is_that_of_a_critic(of, make_scene, make_recipe):
    """A critic that says the baseline of every context, on a tree of the same policy."""
    graph, tree = (make_scene(taught(world=world)) for world in ("graph", "tree"))
    x = directions(graph, "disabled")
    curve = parabola(graph, "disabled", x)
    none = make_recipe("minirl-no-clip", "advantage.baseline=none", "about.scope=token", "schedule.group_size=1")
    critic = make_recipe("minirl-critic", "clip.kind=none", "schedule.group_size=1")
    plain = Measurement(scene=graph, recipe=none)
    b = curve.best(of)[0]
    known = Measurement(scene=tree, recipe=critic, values=b[None, tree.world.place])
    without = float(edge_variance(plain, x))
    found = without - float(curve.none) + float(curve.square(curve.best(of)))
    assert found == pytest.approx(float(group_variance(known)), rel=1e-10)
    assert found < without
