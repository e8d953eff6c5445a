import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import firstorder as fo
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.bounds import bounds
from firstorder.sim.exact.bounds_replay import (
    moved,
    relaxations,
    replay_bounds,
    sampled_total_variation,
    sequence_hellinger,
    sequence_total_variation,
    whole,
)
from firstorder.sim.exact.scene import MODES, build, engines, grow

CHAIN = {"task": "chain", "prompts": 2, "positions": 3, "vocab": 5, "horizon": 4, "recovery": 1}
STALE = {"staleness": 2, "lr": 2.0, "numerics": {"kind": "noise", "scale": 0.3}}
OVER_STEPS = {"trpo", "cpo"}  # on a graph their maxima are over steps that a tree does not have


def both(**changes):
    """The same policies on the tree and on the graph."""
    return [Sim(**CHAIN | STALE | {"world": world} | changes) for world in ("tree", "graph")]


def test_total_variation_of_responses_is_half_their_distance(small, make_lab, make_scene, same):
    sim = small(staleness=1, lr=2.0)
    lab, scene = make_lab(sim), make_scene(sim)
    for mode in ("R2", "R3"):
        total = met = 0.0
        for pair in lab.pairs:
            natural, replayed = (math.exp(sum(lab.target[m].plain(pair))) / 2 for m in ("disabled", mode))
            total += abs(natural - replayed) / 2
            met += math.sqrt(natural * replayed)
        same(sequence_total_variation(scene, mode), torch.tensor([total], dtype=torch.float64), 1e-9)
        same(moved(scene, mode).hellinger, torch.tensor([1 - met], dtype=torch.float64), 1e-9)
        assert total > 1e-4
    assert float(sequence_total_variation(scene, "disabled")) == 0.0
    assert replay_bounds(scene, "disabled") == {}


def test_every_relaxation_is_its_formula(small, make_lab, make_scene, reference):
    sim = small(staleness=1, lr=2.0)
    lab, steps = make_lab(sim), range(sim.horizon)
    found = {name: float(x) for name, x in relaxations(moved(make_scene(sim), "R3")).items()}
    most, sums = 0.0, {}
    for side, (p, q) in {"natural": ("disabled", "R3"), "replayed": ("R3", "disabled")}.items():
        tv, divergence = [0.0 for _ in steps], [0.0 for _ in steps]
        for prompt, response in lab.pairs:
            chance = math.exp(sum(lab.target[p].plain((prompt, response)))) / len(lab.prompts)
            for t in range(len(response)):
                prefix = reference.context(sim, prompt, response[:t])
                a, b = (lab.target[m].run(prefix)[1].tolist() for m in (p, q))
                apart = 0.5 * sum(abs(math.exp(x) - math.exp(y)) for x, y in zip(a, b, strict=True))
                tv[t] += chance * apart
                divergence[t] += chance * sum(math.exp(x) * (x - y) for x, y in zip(a, b, strict=True))
                most = max(most, apart)
        sums[side] = tv, divergence
    for side, (tv, divergence) in sums.items():
        total = sum(divergence)
        splits = [(sum(tv[:k]), sum(tv[k:]), sum(divergence[:k]), sum(divergence[k:])) for k in range(sim.horizon + 1)]
        assert found[f"linear_{side}"] == pytest.approx(sum(tv), rel=1e-9)
        assert found[f"pinsker_{side}"] == pytest.approx(math.sqrt(total / 2), rel=1e-9)
        assert found[f"bretagnolle_huber_{side}"] == pytest.approx(math.sqrt(1 - math.exp(-total)), rel=1e-9)
        least = min(min(a + math.sqrt(d / 2), math.sqrt(c / 2) + b) for a, b, c, d in splits)
        assert found[f"adaptive_{side}"] == pytest.approx(least, rel=1e-9)
    assert found["coupling"] == pytest.approx(1 - (1 - most) ** sim.horizon, rel=1e-9)


@given(
    st.fixed_dictionaries(
        {
            "task": st.sampled_from(["sum", "program", "text"]),
            "horizon": st.integers(1, 4),
            "prompts": st.just(1),
            "seed": st.integers(0, 999),
            "staleness": st.integers(0, 2),
            "lr": st.floats(0.01, 20.0),
            "sharpness": st.floats(0.1, 6.0),
            "numerics": st.fixed_dictionaries({"kind": st.just("noise"), "scale": st.floats(1e-4, 2.0)}),
        }
    )
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_replay_bias_is_below_tv_and_tv_below_every_relaxation(small, make_scene, drawn):
    scene = make_scene(small(**drawn))
    for mode in ("R2", "R3"):
        found, values = replay_bounds(scene, mode), objectives.values(scene, mode)
        total = found["total_variation"]
        assert float(values.replay_bias.abs()) <= float(total) + 1e-14
        for name, bound in found.items():
            assert float(total) <= float(bound) * (1 + 1e-9) + 1e-14, name
        assert float(moved(scene, mode).hellinger) <= float(total) + 1e-14
        error = (values.error + values.replay_bias).abs()
        assert float(error) <= float(whole(bounds(scene, mode), found)) + 1e-14


def test_both_worlds_say_the_same(make_scene, same):
    tree, graph = (make_scene(sim) for sim in both())
    for mode in MODES:
        first, second = bounds(tree, mode), bounds(graph, mode)
        for name in first:
            if name in OVER_STEPS:
                assert float(second[name]) >= float(first[name]) * (1 - 1e-12)
            else:
                same(second[name], first[name], 1e-10)
        if mode != "disabled":
            enumerated, merged = replay_bounds(tree, mode), replay_bounds(graph, mode)
            assert set(enumerated) - set(merged) == {"total_variation"}
            for name, bound in merged.items():
                same(bound, enumerated[name], 1e-10)


@pytest.mark.parametrize("mode", ["R2", "R3"])
def test_a_sample_finds_the_total_variation_of_a_graph(make_scene, mode):
    tree, graph = (make_scene(sim) for sim in both(samples=4096))
    exact, sampled = float(sequence_total_variation(tree, mode)), sampled_total_variation(graph, mode)
    assert 0.01 < exact < 1
    assert sampled.low < exact < sampled.high
    assert sampled.high - sampled.low < 0.05


def test_policies_that_hardly_differ_keep_their_digits(small, make_scene):
    scene = make_scene(small())
    p = scene.target["disabled"].logp.detach()
    sizes, found = (1e-2, 1e-5, 1e-8), []
    for size in sizes:
        q = (p + size * torch.arange(p.shape[-1])).log_softmax(-1)
        found.append(float(sequence_hellinger(p, q, scene.world)) / size**2)
    assert found[1] == pytest.approx(found[0], rel=0.05)
    assert found[2] == pytest.approx(found[1], rel=1e-4)


def test_a_measurement_reports_the_bounds_of_its_replay():
    changes = {"sim": {"horizon": 3, "prompts": 2, "staleness": 1, "lr": 2.0}}
    for name in ("minirl-r2", "minirl-r3"):
        result = fo.measure(name, **changes)
        assert abs(result.replay_bias) <= result.replay_bounds["total_variation"]
        assert result.value_error_natural <= result.replay_bounds["whole"]
        assert result.replay_bounds["whole"] == pytest.approx(
            min(result.bounds.values()) + min(x for n, x in result.replay_bounds.items() if n != "whole")
        )
    assert fo.measure("minirl", **changes).replay_bounds == {}


def test_on_a_graph_the_total_variation_carries_its_interval():
    sim = CHAIN | STALE | {"world": "graph"}
    result = fo.measure("minirl-r3", sim=sim)
    interval = result.intervals["replay_bounds.total_variation"]
    assert result.replay_bounds["total_variation"] == interval.estimate
    assert interval.low < interval.estimate < interval.high


def test_gradients_differ_where_no_probability_does(small):
    sim = small(top_k=1, numerics={"kind": "noise", "scale": 0.5})
    theta = starting_weights(sim, torch.tensor([sim.seed]))
    alike = theta | {name: theta[name][:, :, :1].expand_as(theta[name]) for name in ("up", "down")}
    scene = build(sim, grow(sim), engines(sim, torch.arange(1)), alike)
    assert all(float(bound) == 0.0 for bound in replay_bounds(scene, "R3").values())
    natural, replayed = (objectives.gradient(scene, mode) for mode in ("disabled", "R3"))
    assert float((natural - replayed).norm()) > 0.1 * float(natural.norm())
