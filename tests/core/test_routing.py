import math
from itertools import pairwise
from typing import get_args

import pytest
import torch

from firstorder.core.errors import ConfigError, DataError
from firstorder.core.router import Router, RouterKind, check_router
from firstorder.core.routing import (
    Replay,
    check_routes,
    flips,
    jaccard,
    margin,
    repeats,
    replay_of,
    replay_rows,
    replayed,
    route,
)

ROUTERS = {
    "softmax_topk": Router(kind="softmax_topk", experts=8, top_k=3),
    "topk_softmax": Router(kind="topk_softmax", experts=8, top_k=3),
    "sigmoid_bias": Router(kind="sigmoid_bias", experts=8, top_k=3),
    "group_limited": Router(kind="group_limited", experts=8, top_k=3, groups=4, limited_groups=2),
    "top1": Router(kind="top1", experts=8, top_k=1),
}
EVERY = pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
BIASED = pytest.mark.parametrize("router", [ROUTERS["sigmoid_bias"], ROUTERS["group_limited"]], ids=lambda r: r.kind)


def test_every_kind_of_router_has_its_rule_here():
    assert {router.kind for router in ROUTERS.values()} == set(get_args(RouterKind))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def best(scores, k, among=None):
    return sorted(range(len(scores)) if among is None else among, key=lambda e: -scores[e])[:k]


def slow(logits, router, bias):
    """One token in plain numbers: its experts, best first, and their gates."""
    total = sum(math.exp(x) for x in logits)
    soft = [math.exp(x) / total for x in logits]
    sigmoid = [1 / (1 + math.exp(-x)) for x in logits]
    if router.kind in ("softmax_topk", "topk_softmax"):
        ids = best(logits, router.top_k)
        chosen = sum(soft[e] for e in ids)
        return ids, [soft[e] / chosen for e in ids]
    if router.kind == "top1":
        ids = best(logits, 1)
        return ids, [soft[ids[0]]]
    selection = [s + b for s, b in zip(sigmoid, bias, strict=True)]
    among = None
    if router.kind == "group_limited":
        size = router.experts // router.groups
        groups = [range(g * size, (g + 1) * size) for g in range(router.groups)]
        worth = [sum(sorted((selection[e] for e in group), reverse=True)[:2]) for group in groups]
        among = [e for g in best(worth, router.limited_groups) for e in groups[g]]
    ids = best(selection, router.top_k, among)
    chosen = sum(sigmoid[e] for e in ids)
    return ids, [sigmoid[e] / chosen for e in ids]


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_every_router_is_its_rule_on_each_token(same, router, seed):
    logits, bias = normal(40, 8, seed=seed), 0.3 * normal(8, seed=seed + 100)
    made = route(logits, router, bias if "sigmoid" in router.kind or "group" in router.kind else None)
    expected = [slow(row, router, bias.tolist()) for row in logits.tolist()]
    assert made.ids.tolist() == [ids for ids, _ in expected]
    same(made.gates, [gates for _, gates in expected])


@EVERY
def test_replaying_its_own_choice_changes_no_bit(router):
    logits = normal(5, 7, 8).float()
    live = route(logits, router)
    again = route(logits, router, replay=Replay(ids=live.ids.short()))
    assert torch.equal(again.ids, live.ids)
    assert torch.equal(again.gates, live.gates)


@EVERY
def test_rows_of_minus_one_route_live(router):
    logits = normal(10, 8)
    live = route(logits, router)
    replay = (live.ids + 1) % 8
    replay[::2] = -1
    mixed = route(logits, router, replay=Replay(ids=replay))
    assert torch.equal(mixed.ids[::2], live.ids[::2])
    assert torch.equal(mixed.gates[::2], live.gates[::2])
    assert torch.equal(mixed.ids[1::2], replay[1::2])


@EVERY
def test_the_live_choice_is_that_of_the_same_forward_whatever_is_replayed(router):
    logits = normal(12, 8)
    live = route(logits, router)
    replay = (live.ids + 1) % 8
    replay[::3] = -1
    mixed = route(logits, router, replay=Replay(ids=replay))
    assert torch.equal(mixed.live, live.ids)
    assert torch.equal(live.live, live.ids)
    assert flips(mixed.ids, mixed.live).tolist() == (torch.arange(12) % 3 != 0).tolist()


@EVERY
def test_renaming_the_experts_renames_ids_and_leaves_gates(same, router):
    logits = normal(30, 8)
    order = torch.tensor([3, 2, 5, 4, 1, 0, 7, 6])  # whole groups of two move together
    live, renamed = route(logits, router), route(logits[:, order], router)
    assert torch.equal(order[renamed.ids], live.ids)
    same(renamed.gates, live.gates)


@EVERY
def test_a_foreign_replay_keeps_the_gradient_of_the_router(same, router):
    logits = normal(6, 8).requires_grad_()
    foreign = (route(logits, router).ids + 1) % 8
    made = route(logits, router, replay=Replay(ids=foreign))
    readout = normal(*made.gates.shape, seed=5)
    (analytic,) = torch.autograd.grad((made.gates * readout).sum(), logits)
    step = 1e-6
    numeric = torch.zeros_like(logits)
    for e in range(8):
        shift = step * torch.eye(8, dtype=torch.float64)[e]
        up, down = (route(logits.detach() + s * shift, router, replay=Replay(ids=foreign)).gates for s in (1, -1))
        numeric[:, e] = ((up - down) * readout).sum(-1) / (2 * step)
    torch.testing.assert_close(analytic, numeric, rtol=1e-6, atol=1e-8)
    assert (analytic.gather(-1, foreign).abs().sum(-1) > 0).all()


@pytest.mark.parametrize("kind", ["softmax_topk", "sigmoid_bias", "group_limited"])
def test_gates_of_replayed_experts_whose_scores_underflow_are_those_of_their_logits(same, kind):
    router = ROUTERS[kind]
    logits = normal(4, 8)
    logits[0] -= torch.tensor([0, 0, 0, 0, 0, 800.0, 801.0, 802.0]).double()
    if kind != "softmax_topk":
        logits[0] -= 800.0
    logits.requires_grad_()
    replay = torch.tensor([[5, 6, 7]] * 4)
    gates = route(logits, router, replay=Replay(ids=replay)).gates
    same(gates[0], logits[0, 5:].softmax(-1).detach())
    same(gates[1:], route(logits[1:], router, replay=Replay(ids=replay[1:])).gates.detach())
    (gradient,) = torch.autograd.grad(gates.square().sum(), logits)
    assert gradient.isfinite().all()


def test_softmax_first_and_topk_first_give_the_same_gates(same):
    logits = 3 * normal(50, 8)
    first, last = route(logits, ROUTERS["softmax_topk"]), route(logits, ROUTERS["topk_softmax"])
    assert torch.equal(first.ids, last.ids)
    same(first.gates, last.gates)
    foreign = (first.ids + 2) % 8
    same(
        route(logits, ROUTERS["softmax_topk"], replay=Replay(ids=foreign)).gates,
        route(logits, ROUTERS["topk_softmax"], replay=Replay(ids=foreign)).gates,
    )


@BIASED
def test_a_bias_moves_the_choice_and_never_enters_a_gate(router):
    logits = normal(20, 8)
    bias = normal(8, seed=9).requires_grad_()
    biased, plain = route(logits, router, bias), route(logits, router)
    assert flips(biased.ids, plain.ids).any()
    assert not biased.gates.requires_grad
    assert torch.equal(biased.gates, route(logits, router, replay=Replay(ids=biased.ids)).gates)


def test_a_group_limited_token_stays_in_its_groups():
    router = Router(kind="group_limited", experts=16, top_k=4, groups=4, limited_groups=2)
    check_router(router)
    ids = route(normal(200, 16), router).ids
    assert max(len({e // 4 for e in row}) for row in ids.tolist()) == 2
    assert flips(ids, route(normal(200, 16), Router(kind="sigmoid_bias", experts=16, top_k=4)).ids).any()


@EVERY
def test_ids_are_distinct_and_in_range(router):
    check_router(router)
    check_routes(route(normal(3, 50, 8), router).ids, 8)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"top_k": 9}, "top_k must be at most experts = 8"),
        ({"kind": "top1", "top_k": 2}, "top1 takes one expert"),
        ({"kind": "group_limited", "groups": 3}, "groups of at least 2 experts"),
        ({"kind": "group_limited", "groups": 8}, "groups of at least 2 experts"),
        ({"kind": "group_limited", "groups": 2, "limited_groups": 3}, "groups of at least 2 experts"),
        ({"kind": "group_limited", "groups": 4, "limited_groups": 1, "top_k": 3}, "top_k must be at most 2"),
    ],
)
def test_sizes_that_cannot_route_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        check_router(Router(**sizes))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, -1]], "all ids or all -1"),
        ([[-2, -2]], "all ids or all -1"),
        ([[0, 4]], "must be below experts = 4, got 4"),
        ([[1, 2], [0, 0]], r"distinct experts, got \[0, 0\]"),
    ],
)
def test_broken_route_rows_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        check_routes(torch.tensor(rows), 4)


def test_live_rows_beside_replayed_ones_pass():
    check_routes(torch.tensor([[-1, -1], [3, 0]]), 4)


def test_flips_and_overlap_compare_sets_not_orders(same):
    a, b = torch.tensor([[0, 1], [0, 1], [0, 1]]), torch.tensor([[1, 0], [0, 2], [2, 3]])
    assert flips(a, b).tolist() == [False, True, True]
    same(jaccard(a, b), [1.0, 1 / 3, 0.0])


def test_flips_and_overlap_agree_with_sets(same):
    a, b = (route(normal(60, 8, seed=s), ROUTERS["softmax_topk"]).ids for s in (1, 2))
    sets = [(set(x), set(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert flips(a, b).tolist() == [x != y for x, y in sets]
    same(jaccard(a, b), [len(x & y) / len(x | y) for x, y in sets])


def test_the_margin_is_the_distance_to_a_flip(same):
    scores = normal(30, 8)
    expected = [(s := sorted(row, reverse=True))[2] - s[3] for row in scores.tolist()]
    same(margin(scores, 3), expected)
    assert margin(scores, 8).isinf().all()


def test_rows_are_counted_one_by_one_and_weighed():
    g = torch.Generator().manual_seed(3)
    n, m = 40, 3
    live = torch.stack([torch.randperm(5, generator=g)[:2] for _ in range(n * m)]).view(n, m, 2).to(torch.int16)
    given = torch.stack([torch.randperm(5, generator=g)[:2] for _ in range(n * m)]).view(n, m, 2).to(torch.int16)
    given[::4, 1] = -1
    given[1::4] = live[1::4].flip(-1)  # the same set in another order changes nothing
    weight = torch.rand(n, generator=g, dtype=torch.float64)
    for run in (weight > 0.3, weight):
        expected = {name: [0.0] * m for name in ("replayed", "live", "changed")}
        for row in range(n):
            for layer in range(m):
                ids, own = given[row, layer].tolist(), live[row, layer].tolist()
                expected["live" if ids[0] < 0 else "replayed"][layer] += float(run[row])
                expected["changed"][layer] += float(run[row]) * (ids[0] >= 0 and set(ids) != set(own))
        found = replay_rows(given, given, live, run)
        assert found.pop("replaced").tolist() == [0.0] * m
        assert found.keys() == expected.keys()
        assert all(found[name].tolist() == pytest.approx(rows) for name, rows in expected.items())
        assert all(rows.dtype == torch.float64 for rows in found.values())
        assert 0 < sum(found["changed"]) < sum(found["replayed"])


def test_a_leading_axis_of_the_rows_is_counted_member_by_member():
    given = torch.tensor([[[[0, 1]], [[-1, -1]]], [[[2, 3]], [[0, 1]]]])
    live = torch.zeros_like(given) + torch.tensor([0, 1])
    found = replay_rows(given, given, live, torch.ones(2, 2, dtype=torch.bool))
    assert {name: rows[:, 0].tolist() for name, rows in found.items()} == {
        "replayed": [1.0, 2.0],
        "replaced": [0.0, 0.0],
        "live": [1.0, 0.0],
        "changed": [0.0, 1.0],
    }


def test_a_fill_is_told_from_a_choice():
    a, b, c, none = [0, 1], [1, 0], [2, 3], [-1, -1]
    rows = {
        "a choice": ([a, c], [c, a], [False, False]),
        "the last row again": ([a, c], [a, c], [True, True]),
        "again in one layer": ([a, c], [a, b], [True, False]),
        "the same experts in another order": ([a, c], [b, c], [False, True]),
        "one row for all layers": ([a, a], [c, b], [True, True]),
        "none": ([none, none], [none, none], [False, False]),
        "the first": ([a, c], [none, none], [False, False]),
    }
    for name, (row, before, expected) in rows.items():
        assert repeats(torch.tensor(row), torch.tensor(before)).tolist() == expected, name
    assert not repeats(torch.tensor([a]), torch.tensor([c])).any()  # a single layer is not "all layers"


def test_given_ids_take_the_place_of_the_live_choice_row_by_row():
    scores = torch.tensor([[9.0, 8, 1, 1, 1, 1, 1, 1], [1, 1, 9, 8, 1, 1, 1, 1], [1, 1, 1, 1, 9, 8, 1, 1]])
    live = torch.tensor([[0, 1], [2, 3], [4, 5]])
    given = torch.tensor([[7, 6], [-1, -1], [5, 4]])
    ids, there = replayed(Replay(ids=given), live, scores, scores)
    assert ids.tolist() == [[7, 6], [2, 3], [5, 4]]
    assert there.tolist() == [True, False, True]


def slow_conditional(given, live, strength, share):
    """The rule of conditional replay in sets: who stays, then the best of the others."""
    weakest = min(strength[e] for e in live)
    least = share * weakest if weakest > 0 else weakest
    stay = [e for e in given if share == 0 or strength[e] >= least]
    others = sorted((e for e in range(len(strength)) if e not in stay), key=lambda e: -strength[e])
    return set(stay) | set(others[: len(live) - len(stay)])


def foreign_ids(count, experts, top_k, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, experts, generator=g).argsort(-1)[:, :top_k]


@EVERY
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95, 1.0])
def test_conditional_replay_is_its_rule_on_each_token(router, share):
    logits, given = normal(60, 8), foreign_ids(60, 8, router.top_k, 5)
    found = route(logits, router, replay=Replay(ids=given, condition=torch.tensor(share, dtype=torch.float64)))
    strength = found.selection.softmax(-1) if router.kind == "topk_softmax" else found.selection
    for row in range(60):
        expected = slow_conditional(given[row].tolist(), found.live[row].tolist(), strength[row].tolist(), share)
        assert set(found.ids[row].tolist()) == expected
    if share == 0:
        assert torch.equal(found.ids, given)
    if share == 1:
        assert not flips(found.ids, found.live).any()


def test_an_expert_that_stays_stays_at_every_smaller_share():
    router = ROUTERS["softmax_topk"]
    logits, given = normal(200, 8), foreign_ids(200, 8, router.top_k, 6)
    kept = []
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        found = route(logits, router, replay=Replay(ids=given, condition=torch.tensor(share)))
        kept.append((found.ids[:, :, None] == given[:, None]).any(1))
    assert all((later <= earlier).all() for earlier, later in pairwise(kept))
    assert kept[0].sum() > kept[2].sum() > kept[-1].sum()


@EVERY
def test_margin_aware_replay_leaves_rows_with_a_wide_margin_to_their_router(router):
    logits, given = normal(60, 8), foreign_ids(60, 8, router.top_k, 7)
    live = route(logits, router)
    tau = live.margin[live.margin < torch.inf].median()
    mixed = route(logits, router, replay=Replay(ids=given, margin=tau))
    narrow = live.margin < tau
    assert 0 < narrow.sum() < 60
    assert torch.equal(mixed.ids[narrow], given[narrow])
    assert torch.equal(mixed.ids[~narrow], live.ids[~narrow])


@EVERY
def test_gates_that_are_given_are_constants_in_the_rows_that_replay_them(router):
    logits, given = normal(20, 8).requires_grad_(), foreign_ids(20, 8, router.top_k, 8)
    given[::2] = -1
    gates = torch.rand(20, router.top_k, dtype=torch.float64)
    gates[1::4] = torch.nan
    found = route(logits, router, replay=Replay(ids=given, gates=gates))
    plain = route(logits.detach(), router, replay=Replay(ids=given))
    assert torch.equal(found.gates[3::4].detach(), gates[3::4])
    for rows in (slice(0, None, 2), slice(1, None, 4)):
        assert torch.equal(found.gates[rows].detach(), plain.gates[rows])
    (slope,) = torch.autograd.grad(found.gates[:, 0].sum(), logits)
    assert not slope[3::4].any()
    assert router.top_k > 1 or slope[::2].any()


def test_the_rule_of_a_row_may_be_another_in_every_member():
    router = ROUTERS["softmax_topk"]
    logits, given = normal(3, 40, 8), foreign_ids(120, 8, router.top_k, 9).view(3, 40, -1)
    margins, shares = torch.tensor([[0.05], [torch.inf], [0.1]]), torch.tensor([[0.0], [0.8], [0.5]])
    together = route(logits, router, replay=Replay(ids=given, margin=margins, condition=shares))
    for m in range(3):
        rule = Replay(ids=given[m], margin=margins[m, 0], condition=shares[m, 0])
        assert torch.equal(together.ids[m], route(logits[m], router, replay=rule).ids)


@pytest.mark.parametrize(("mode", "routes"), [("disabled", None), ("R2", "old"), ("R3", "mu")])
def test_a_replay_mode_gives_the_target_the_routes_of_one_engine(mode, routes):
    assert replay_of(mode, "old", "mu") == routes
