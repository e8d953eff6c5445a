"""The calibrated cold start: what it teaches, and that it begins where it is told to."""

import math

import pytest
import torch

from firstorder.core.errors import ConfigError, NotFiniteError
from firstorder.core.method.recipe import Optimizer
from firstorder.sim import calibration, coldstart, optimizer
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.model.numerics import arithmetic
from firstorder.sim.model.policy import flatten, gradient, initial_weights, leaves, load, step
from firstorder.sim.tasks import Chain
from firstorder.sim.tasks.value import value

SIZES = {"task": "chain", "coldstart": "calibrated", "vocab": 8, "prompts": 2, "positions": 4, "width": 8, "experts": 4}
ANSWER = {"ending": "answer", "recovery": 1, "thinking": 1, "feedback": True, "turn_length": 2, "vocab": 12}
SEEDS = torch.tensor([3, 8])


def worth(sim, weights, seeds=SEEDS):
    """J of the measured problems, `[M]`."""
    contexts = Chain(sim).contexts(torch.arange(sim.prompts))
    with torch.no_grad():
        model = load(weights, arithmetic(Numerics(), seeds), sim)
        return value(step(model, None, contexts.features, contexts.keys).logp, contexts, sim.horizon)


@pytest.mark.parametrize(
    ("horizon", "changes"),
    [
        (32, {}),
        (512, {}),
        (2, {"coldstart_value": 0.6}),  # the head is made smaller
        (32, ANSWER | {"tail": 1.0}),
        (512, ANSWER | {"reward": "graded", "coldstart_value": 0.7}),
        (512, {"coldstart_value": 1e-9, "temperature": 0.7}),
        (32, {"coldstart_value": 0.999, "pool": 5, "router": "sigmoid_bias"}),
    ],
)
def test_every_member_begins_at_the_value(horizon, changes):
    sim = Sim(**(SIZES | {"horizon": horizon} | changes))
    assert worth(sim, starting_weights(sim, SEEDS)).tolist() == pytest.approx([sim.coldstart_value] * 2, rel=1e-8)


def test_the_first_step_descends_the_cross_entropy_of_the_lesson(same):
    """Against plain numbers: the mean over the contexts taught, of all problems there are."""
    sim = Sim(**SIZES | {"horizon": 1}, coldstart_steps=1, coldstart_value=0.5, tail=1.0)  # half on the right
    task, seeds = Chain(sim), torch.tensor([5])
    contexts = task.contexts(torch.arange(4))
    weights = leaves(initial_weights(sim, seeds))
    logp = step(load(weights, arithmetic(Numerics(), seeds), sim), None, contexts.features, contexts.keys).logp[0]
    zipf, terms = sum(1 / k for k in range(1, 8)), []
    for row in range(0, 32, 2):  # those on the chain
        rank = task.rank(torch.tensor(row // 8), torch.tensor(row // 2 % 4)).tolist()
        terms += [logp[row, v] * (0.5 if k == 0 else 0.5 / k / zipf) for v, k in enumerate(rank)]
    settings = optimizer.settings([Optimizer(lr=sim.coldstart_lr)])
    start, slope = flatten(weights).detach(), gradient(-sum(terms) / 16, weights)
    expected, _ = optimizer.step(start, optimizer.clip(slope, settings)[0], optimizer.start(start), settings)
    found = calibration._taught(sim, seeds, task)
    same(flatten(found), expected, 1e-9)


def test_nothing_but_the_size_of_the_head_is_calibrated(same):
    sim = Sim(**SIZES, horizon=64)
    found, after = calibration._taught(sim, SEEDS, Chain(sim)), starting_weights(sim, SEEDS)
    assert all(torch.equal(after[name], w) for name, w in found.items() if name != "head")
    factor = after["head"] / found["head"]
    same(factor, factor[:, :1, :1].expand_as(factor))
    assert (factor > 1.01).all()


def test_a_member_starts_as_if_alone_and_its_copies_with_it(same):
    sim = Sim(**SIZES, horizon=64, coldstart_steps=30)
    together = starting_weights(sim, torch.tensor([7, 3, 7]))
    for place, seed in enumerate((7, 3, 7)):
        for name, w in starting_weights(sim, torch.tensor([seed])).items():
            same(together[name][place], w[0], 1e-9)


def test_a_start_is_the_same_whatever_follows_and_where_gradients_are_off():
    sim = Sim(**SIZES, horizon=16)
    later = {"world": "graph", "training_numerics": Numerics(kind="bf16"), "staleness": 1, "members": 2}
    other = sim.model_copy(update=later)
    a = starting_weights(sim, SEEDS)
    coldstart._calibrated.cache_clear()
    with torch.no_grad():
        b = starting_weights(other, SEEDS)
    assert a["head"] is not b["head"]
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(w.requires_grad for w in a.values())


def test_a_value_by_another_computation_is_as_good():
    """One problem of one position, right tokens on which depend on nothing: J = p^T, so p = J^(1/T)."""
    sim = Sim(task="chain", prompts=1, positions=1, vocab=3, horizon=1000)
    task, calls = Chain(sim), []
    rows = torch.arange(1)
    good = task.lesson(rows).good[0]
    logp = torch.where(good, 2.0, torch.tensor([0.0, 0.3, 0.1])).double().log_softmax(-1).expand(2, 2, 3)
    logp = torch.stack([logp[0], 3 * logp[1]]).log_softmax(-1)

    def power(logp, contexts, horizon):
        calls.append(horizon)
        return (horizon * logp[:, 0][:, good].squeeze(-1)).exp()

    factor = calibration.sharpened(logp, task.contexts(rows), task.lesson(rows), sim, power)
    p = (factor[:, None, None] * logp).softmax(-1)[:, 0][:, good].squeeze(-1)
    assert p.tolist() == pytest.approx([math.exp(math.log(0.25) / 1000)] * 2, rel=1e-11)
    assert float(factor[0]) == pytest.approx(3 * float(factor[1]), rel=1e-6)
    assert set(calls) == {1000}
    assert len(calls) < 20


def test_a_value_that_no_factor_reaches_is_refused_by_name():
    sim = Sim(**SIZES, horizon=64, coldstart_steps=1)
    with pytest.raises(
        ConfigError, match=r"out of reach: the sharpest policy earns 0, for a right token is the likel"
    ) as e:
        starting_weights(sim, SEEDS)
    assert " of the 8 contexts taught; raise sim.coldstart_steps, sim.coldstart_lr or sim.width" in str(e.value)
    sim = Sim(**SIZES, horizon=2, coldstart_value=0.01)
    with pytest.raises(
        ConfigError, match=r"0\.01 is less than the 0\.01\d+ that a policy earns which says every token"
    ):
        starting_weights(sim, SEEDS)


def test_weights_that_are_not_finite_are_refused(monkeypatch):
    def broken(sim, seeds):
        return {name: w * float("nan") for name, w in initial_weights(sim, seeds).items()}

    monkeypatch.setattr(calibration, "initial_weights", broken)
    with pytest.raises(NotFiniteError, match=r"not finite after the cold start; lower sim\.coldstart_lr"):
        starting_weights(Sim(**SIZES, coldstart_steps=1), SEEDS)
