from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.forward import run
from firstorder.sim.exact.tree import plant
from firstorder.sim.model.numerics import HEAD, ROUTER, SPLITS, UP, Site, arithmetic
from firstorder.sim.model.policy import initial_weights, load
from firstorder.sim.tasks import task_of

SIZES = {"vocab": 4, "horizon": 2, "width": 8, "expert_width": 6, "experts": 4, "layers": 2, "prompts": 4}
KINDS = [kind for kind in get_args(Numerics.model_fields["kind"].annotation) if kind != "exact"]
ROWS = torch.arange(4)


def logp(numerics, rows=ROWS, member=0, **sizes):
    sim = Sim(**(SIZES | sizes))
    weights = initial_weights(sim, torch.tensor([0]))
    return run(load(weights, arithmetic(numerics, torch.tensor([member])), sim), plant(task_of(sim), rows)).logp


def distance(a, b):
    return float((a - b).abs().max())


def operands(seed=0, members=1, prefixes=5, inputs=16, outputs=3):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(members, prefixes, inputs, generator=g, dtype=torch.float64)
    w = torch.randn(members, inputs, outputs, generator=g, dtype=torch.float64)
    return x, w, torch.randint(1 << 62, (prefixes,), generator=g)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_departs_from_exact_arithmetic_by_little(kind):
    far = distance(logp(Numerics(kind=kind, scale=0.01)), logp(Numerics()))
    assert 1e-8 < far < 1.0


@pytest.mark.parametrize("kind", ["split", "gate_order", "batch"])
def test_another_order_of_operations_is_a_matter_of_precision(kind):
    exact = logp(Numerics())
    fine = distance(logp(Numerics(kind=kind, accumulate="float32")), exact)
    coarse = distance(logp(Numerics(kind=kind, accumulate="bf16")), exact)
    assert 0 < fine < 1e-4
    assert fine < coarse / 100


@pytest.mark.parametrize("router", ["softmax_topk", "topk_softmax"])
def test_the_order_of_gates_is_no_difference_in_float64(router):
    a = arithmetic(Numerics(kind="gate_order", accumulate="float32"), torch.arange(1))
    low = Numerics.model_construct(**(dict(a.numerics) | {"accumulate": "float64"}))
    assert distance(logp(low, router=router), logp(Numerics(), router=router)) < 1e-13


@pytest.mark.parametrize("kind", ["split", "gate_order", "batch"])
def test_a_kind_that_float64_would_hide_is_refused(kind):
    with pytest.raises(ValidationError, match=f"numerics.kind = {kind} changes nothing in float64; set accumulate"):
        Numerics(kind=kind, accumulate="float64")


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "fp4"},
        {"scale": -0.1},
        {"scale": float("nan")},
        {"router_scale": float("inf")},
        {"expert_scale": -1.0},
        {"split": 0},
        {"block": 0},
        {"seed": -1},
        {"granularity": "row"},
        {"accumulate": "fp8"},
        {"sacle": 0.1},
    ],
)
def test_an_impossible_setting_is_refused(wrong):
    with pytest.raises(ValidationError):
        Numerics(**wrong)


def test_noise_of_zero_size_is_none():
    assert torch.equal(logp(Numerics(kind="noise", scale=0.0)), logp(Numerics()))


def test_router_and_expert_noise_are_set_apart():
    both = logp(Numerics(kind="noise", scale=0.1))
    assert torch.equal(logp(Numerics(kind="noise", scale=0.5, router_scale=0.1, expert_scale=0.1)), both)
    router = logp(Numerics(kind="noise", router_scale=0.1, expert_scale=0.0))
    expert = logp(Numerics(kind="noise", router_scale=0.0, expert_scale=0.1))
    nobody = logp(Numerics())
    assert min(distance(router, nobody), distance(expert, nobody), distance(router, expert)) > 1e-6


@pytest.mark.parametrize("kind", ["noise", "batch"])
def test_a_member_s_seed_and_the_engine_s_seed_both_pick_the_draw(kind):
    base = logp(Numerics(kind=kind))
    assert torch.equal(logp(Numerics(kind=kind)), base)
    assert distance(logp(Numerics(kind=kind, seed=1)), base) > 1e-6
    assert distance(logp(Numerics(kind=kind), member=1), base) > 1e-6


@pytest.mark.parametrize("kind", ["fp8", "bf16", "int8", "split", "gate_order"])
def test_an_engine_without_chance_has_no_seed(kind):
    assert torch.equal(logp(Numerics(kind=kind, seed=1), member=3), logp(Numerics(kind=kind)))


@pytest.mark.parametrize("kind", ["noise", "batch"])
def test_prompts_in_another_order_are_the_same_numbers(kind, same):
    numerics, order = Numerics(kind=kind), torch.tensor([2, 0, 3, 1])
    levels = [4, 12]
    blocks = [torch.arange(n).view(4, -1)[order].flatten() + sum(levels[:t]) for t, n in enumerate(levels)]
    same(logp(numerics, ROWS[order]), logp(numerics)[:, torch.cat(blocks)])


def test_noise_is_relative_to_the_size_of_what_it_disturbs():
    x, _, keys = operands(inputs=4000)
    a = arithmetic(Numerics(kind="noise", scale=0.1), torch.arange(1))
    site = Site(layer=1, name=UP, keys=keys)
    moved = a.perturb(x, site) - x
    size = x.square().mean(-1).sqrt()
    torch.testing.assert_close(moved.square().mean(-1).sqrt(), 0.1 * size, rtol=0.1, atol=0.0)
    assert (moved.mean(-1).abs() < 4 * 0.1 * size / 4000**0.5).all()
    torch.testing.assert_close(a.perturb(3 * x, site), 3 * a.perturb(x, site))
    other = a.perturb(x, Site(layer=1, name=ROUTER, keys=keys)) - x
    assert abs(float((moved * other).mean() / moved.square().mean())) < 4 / moved.numel() ** 0.5


def test_the_gradient_of_noise_is_that_of_the_noisy_function():
    x, _, keys = operands(inputs=6)
    a = arithmetic(Numerics(kind="noise", scale=0.3), torch.arange(1))
    site = Site(layer=0, name=UP, keys=keys)
    assert torch.autograd.gradcheck(lambda v: a.perturb(v, site), [x.requires_grad_()])
    zero = torch.zeros_like(x, requires_grad=True)
    (slope,) = torch.autograd.grad(a.perturb(zero, site).sum(), zero)
    assert slope.isfinite().all()


@pytest.mark.parametrize("split", [1, 2, 3, 5, 16, 40])
def test_a_split_product_adds_its_pieces_in_order(split):
    x, w, _ = operands()
    a = arithmetic(Numerics(kind="split", split=split, accumulate="float32"), torch.arange(1))
    got = a.product(x, w, Site(layer=0, name=UP, keys=None))
    size = -(-16 // split)
    total = torch.zeros(1, 5, 3, dtype=torch.float32)
    for start in range(0, 16, size):
        piece = (x[..., start : start + size] @ w[:, start : start + size]).float()
        total = (total.double() + piece.double()).float()
    assert torch.equal(got, total.double())


def test_a_batch_dependent_product_is_one_of_the_splits_chosen_per_prefix_and_call():
    x, w, keys = operands(prefixes=200)
    options = []
    for split in SPLITS:
        numerics = Numerics(kind="split", split=max(split, 1), accumulate="bf16")
        options.append(arithmetic(numerics, torch.arange(1)).product(x, w, Site(layer=0, name=UP, keys=keys)))
    calls = [
        arithmetic(Numerics(kind="batch"), torch.tensor([m])).product(x, w, Site(layer=0, name=UP, keys=keys))
        for m in (0, 1)
    ]
    for got in calls:
        hits = torch.stack([(got == option).all(-1) for option in options])
        assert hits.any(0).all()
        alone = hits & (hits.sum(0) == 1)
        assert (alone.sum((-2, -1)) > 10).all()
    assert not torch.equal(*calls)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_the_router_and_the_head_are_spared_from_eight_bits(kind):
    x, w, _ = operands()
    a = arithmetic(Numerics(kind=kind), torch.arange(1))
    for name, site in (("router", ROUTER), ("head", HEAD)):
        stored = a.weight(w, name)
        assert torch.equal(stored, w.bfloat16().double())
        got = a.product(x, stored, Site(layer=0, name=site, keys=None))
        assert torch.equal(got, (x.bfloat16().double() @ stored).bfloat16().double())
    for name in ("mix_x", "mix_s", "up", "down"):
        assert not torch.equal(a.weight(w, name), w.bfloat16().double())


def test_a_scale_for_every_block_is_closer_than_one_for_the_tensor():
    x, w, _ = operands(inputs=32)
    w = w * torch.logspace(-4, 4, 32, dtype=torch.float64)[:, None]
    exact = x / torch.logspace(-4, 4, 32, dtype=torch.float64) @ w
    errors = []
    for granularity in ("tensor", "block"):
        a = arithmetic(Numerics(kind="fp8", granularity=granularity, block=4), torch.arange(1))
        stored = a.weight(w, "up")
        scaled = x / torch.logspace(-4, 4, 32, dtype=torch.float64)
        errors.append(distance(a.product(scaled, stored, Site(layer=0, name=UP, keys=None)), exact))
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp8", "int8", "split", "gate_order"])
def test_a_low_precision_gradient_is_close_to_the_exact_one(kind):
    sim = Sim(**SIZES)
    found = []
    for numerics in (Numerics(kind=kind), Numerics()):
        weights = {n: w.requires_grad_() for n, w in initial_weights(sim, torch.tensor([0])).items()}
        done = run(load(weights, arithmetic(numerics, torch.arange(1)), sim), plant(task_of(sim), ROWS))
        grads = torch.autograd.grad(done.logp[..., 1].sum(), list(weights.values()))
        found.append(torch.cat([g.flatten() for g in grads]))
    low, exact = found
    assert 0 < float((low - exact).norm() / exact.norm()) < 0.5
