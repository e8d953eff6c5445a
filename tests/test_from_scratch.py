"""The algorithm in one file is the one of the package: weights, loss and gradient, to rounding."""

import ast
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import firstorder as fo
from firstorder.core.conformance.answer import numbers
from firstorder.core.method.advantage import advantage
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import surrogate_loss, token_weights

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs/examples/minirl_from_scratch.py"
VECTORS = json.loads((ROOT / "core/conformance/vectors.json").read_text())
EXACT = runpy.run_path(str(ROOT / "tests/tolerances.py"))["EXACT"][torch.float64]
scratch = SimpleNamespace(**runpy.run_path(str(FILE)))
NO_CLIP = {"low": torch.inf, "high": torch.inf}
OPTIONS = {
    "minirl": {},
    "minirl-no-is": {"use_is": False},
    "minirl-no-clip": NO_CLIP,
    "minirl-r2": {},
    "minirl-r3": {},
    "minirl-r3-no-is": {"use_is": False},
    "minirl-r2-no-clip": NO_CLIP,
}
GOLDEN = ("minirl", "minirl-no-is", "minirl-no-clip")


def of_scratch(stats, **options):
    """Weight, loss and gradient by log π_θ as the file makes them; the weight 0 off the mask, where it is not read."""
    theta = stats.logp_theta.detach().clone().requires_grad_()
    a = stats.advantage if stats.advantage.ndim == 2 else stats.advantage[:, None]
    weights = scratch.token_weights(theta, stats.logp_old, stats.logp_mu, a, **options)
    loss = scratch.minirl_loss(theta, weights, stats.mask)
    (gradient,) = torch.autograd.grad(loss, theta)
    scored = stats.mask & (stats.logp_theta > -torch.inf)
    return {"weight": torch.where(scored, weights, 0.0), "loss": loss.detach(), "gradient": gradient}


def of_package(stats, recipe):
    theta = stats.logp_theta.detach().clone().requires_grad_()
    moved = TokenStats(**vars(stats) | {"logp_theta": theta})
    weight = token_weights(moved, recipe).weight
    loss = surrogate_loss(moved, weight)
    (gradient,) = torch.autograd.grad(loss, theta)
    return {"weight": weight, "loss": loss.detach(), "gradient": gradient}


def assert_same(found, expected):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=EXACT, atol=EXACT, msg=lambda text, n=name: f"{n}: {text}")


def batch(seed, size, length, spread, per_token):
    """Random log-probs, spread around those of one policy; masks with gaps, and what is off them no log-prob."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    mask = torch.rand(size, length, generator=g) < 0.7
    base = -normal(size, length).abs() - 0.5

    def near():
        return torch.where(mask, (base + spread * normal(size, length)).clamp(max=0.0), 99.0)

    return TokenStats(
        logp_theta=near(),
        logp_old=near(),
        logp_mu=near(),
        mask=mask,
        advantage=normal(size, length) if per_token else normal(size).round(decimals=1),
    )


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 6),
    length=st.integers(1, 9),
    spread=st.sampled_from((0.0, 0.01, 0.3, 3.0, 20.0)),
    per_token=st.booleans(),
)
def test_any_batch_gets_the_weights_loss_and_gradient_of_the_recipe(name, seed, size, length, spread, per_token):
    stats = batch(seed, size, length, spread, per_token)
    assert_same(of_scratch(stats, **OPTIONS[name]), of_package(stats, fo.recipe(name)))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.floats(0.01, 0.9), high=st.floats(0.01, 2.0))
def test_the_clip_drops_the_tokens_that_the_recipe_drops_at_any_bounds(seed, low, high):
    stats = batch(seed, 5, 8, 0.3, False)
    recipe = fo.recipe("minirl", clip={"low": low, "high": high})
    found, expected = of_scratch(stats, low=low, high=high), of_package(stats, recipe)
    assert_same(found, expected)
    assert torch.equal(found["weight"] == 0, expected["weight"] == 0)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("case", VECTORS["cases"])
def test_the_golden_vectors_are_met(name, case):
    inputs = {key: torch.tensor(words(value), dtype=torch.float64) for key, value in inputs_of(case).items()}
    stats = TokenStats(mask=inputs.pop("mask").bool(), **inputs)
    found, entry = of_scratch(stats, **OPTIONS[name]), VECTORS["expected"]["methods"][name][case]
    for output, value in found.items():
        rows = zip(numbers(value.tolist()), numbers(entry[output]), strict=True)
        assert max(abs(one - other) / max(1.0, abs(other)) for (_, one), (_, other) in rows) < EXACT, output


def inputs_of(case):
    kept = ("logp_theta", "logp_old", "logp_mu", "mask", "advantage")
    return {key: VECTORS["cases"][case]["inputs"][key] for key in kept}


def words(values):
    """Lists of numbers, an infinity of which is a text."""
    return [words(each) if isinstance(each, list) else float(each) for each in values]


@pytest.mark.parametrize("std", [False, True], ids=["mean", "std"])
def test_advantages_are_those_of_the_package(std):
    rule = fo.recipe("minirl", advantage={"std": std}).advantage
    groups = [torch.tensor(each, dtype=torch.float64) for each in VECTORS["groups"]["rewards"].values()]
    spread = [each for each in groups if not std or (each != each[:, :1]).any()]  # one reward alone has no spread
    assert len(spread) >= 4
    for rewards in spread:
        torch.testing.assert_close(
            scratch.group_advantage(rewards, std), advantage(rewards, rule), rtol=EXACT, atol=EXACT
        )


@pytest.fixture(scope="module")
def rollout():
    """Every response, the two engines, and weights θ that have moved on, so that experts differ in both ways."""
    theta, g = scratch.policy(), torch.Generator().manual_seed(1)
    moved = {name: w + 0.1 * torch.randn(w.shape, generator=g, dtype=w.dtype) for name, w in theta.items()}
    tokens = torch.cartesian_prod(*[torch.arange(scratch.V)] * (1 + scratch.DIGITS))
    mask = (torch.arange(1 + scratch.DIGITS) > 0).expand(tokens.shape)
    return SimpleNamespace(old=theta, mu=scratch.fp8(theta), theta=moved, tokens=tokens, mask=mask)


@pytest.mark.parametrize("replay", ["none", "R2", "R3"])
def test_under_replay_the_gradient_of_every_weight_is_that_of_the_recipe(rollout, replay):
    logp_mu, routes_mu = scratch.logp(rollout.mu, rollout.tokens)
    routes_old = scratch.logp(rollout.old, rollout.tokens)[1]
    routes = {"none": None, "R2": routes_old, "R3": routes_mu}[replay]
    theta = {name: w.clone().requires_grad_() for name, w in rollout.theta.items()}
    logp_theta = scratch.logp(theta, rollout.tokens, routes)[0]
    logp_old = scratch.logp(rollout.old, rollout.tokens, routes)[0]
    a = scratch.group_advantage(scratch.reward(rollout.tokens).view(scratch.V, -1)).view(-1, 1)
    mine = scratch.minirl_loss(logp_theta, scratch.token_weights(logp_theta, logp_old, logp_mu, a), rollout.mask)
    stats = TokenStats(
        logp_theta=logp_theta, logp_old=logp_old, logp_mu=logp_mu, mask=rollout.mask, advantage=a.flatten()
    )
    recipe = fo.recipe("minirl" if replay == "none" else f"minirl-{replay.lower()}")
    theirs = surrogate_loss(stats, token_weights(stats, recipe).weight)
    torch.testing.assert_close(mine, theirs, rtol=EXACT, atol=EXACT)
    found, expected = (torch.autograd.grad(loss, theta.values(), retain_graph=True) for loss in (mine, theirs))
    for name, one, other in zip(theta, found, expected, strict=True):
        assert one.abs().max() > 1e-4, f"{name} learns nothing"
        torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)


def test_replay_changes_the_policy_where_experts_differ_and_nowhere_else(rollout):
    live, own = scratch.logp(rollout.theta, rollout.tokens)
    assert torch.equal(scratch.logp(rollout.theta, rollout.tokens, own)[0], live)
    for engine in (rollout.old, rollout.mu):
        routes = scratch.logp(engine, rollout.tokens)[1]
        replayed = scratch.logp(rollout.theta, rollout.tokens, routes)[0]
        differ = (routes.sort(-1).values != own.sort(-1).values).any(-1)
        changed = (replayed - live)[:, 1:].abs() > EXACT
        assert differ.any()
        assert not differ.all()
        assert torch.equal(changed, differ)


def test_the_update_of_one_engine_without_staleness_is_the_gradient_of_j(rollout):
    theta = {name: w.clone().requires_grad_() for name, w in rollout.theta.items()}
    logp = scratch.logp(theta, rollout.tokens)[0]
    p, rewards = logp.sum(-1).exp() / scratch.V, scratch.reward(rollout.tokens)
    assert scratch.exact_j(theta) == pytest.approx((p * rewards).sum().item(), rel=EXACT)
    assert p.sum().item() == pytest.approx(1.0, rel=EXACT)
    measured = (len(p) * p.detach() * rewards)[:, None]  # each response counts by its probability
    loss = scratch.minirl_loss(logp, scratch.token_weights(logp, logp, logp, measured), rollout.mask)
    pairs = (torch.autograd.grad(x, theta.values(), retain_graph=True) for x in (-loss, (p * rewards).sum()))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("replay", ["none", "R2", "R3"])
def test_a_step_replays_in_every_policy_of_the_trainer_what_it_says(replay, monkeypatch):
    seen, weighed = [], []

    def logp(theta, tokens, routes=None, true=scratch.logp):
        seen.append((routes, *true(theta, tokens, routes)))
        return seen[-1][1:]

    def token_weights(theta, old, mu, advantage, true=scratch.token_weights):
        weighed.append((theta, old, mu))
        return true(theta, old, mu, advantage)

    for each in (logp, token_weights):
        monkeypatch.setitem(scratch.train.__globals__, each.__name__, each)
    list(scratch.train(replay, steps=1))
    _, of_mu, of_old, old, *minibatches, _ = seen  # first and last is J
    expected = {"none": None, "R2": of_old[2], "R3": of_mu[2]}[replay]
    assert not torch.equal(of_mu[2], of_old[2])
    assert len(minibatches) == len(weighed) == scratch.N
    rows = torch.arange(len(of_mu[1])).chunk(scratch.N)
    for at, one, (theta, of_rollout, of_engine) in zip(rows, minibatches, weighed, strict=True):
        assert one[0] is None if expected is None else torch.equal(one[0], expected[at])
        assert theta is one[1]
        assert torch.equal(of_rollout, old[1][at])
        assert torch.equal(of_engine, of_mu[1][at])
    assert old[0] is expected


@pytest.mark.parametrize("replay", ["none", "R2", "R3"])
def test_it_learns(replay):
    j = list(scratch.train(replay, steps=12))
    assert len(j) == 13
    assert j[0] < 0.2
    assert j[-1] > 0.7


def test_the_file_prints_j(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(FILE), "R3"])
    runpy.run_path(str(FILE), run_name="__main__")
    found = [float(line.split("=")[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 7
    assert found == sorted(found)


def test_it_is_one_short_file_that_needs_torch_alone():
    text = FILE.read_text()
    assert len(text.splitlines()) <= 150
    nodes = list(ast.walk(ast.parse(text)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {"torch", *sys.stdlib_module_names}
