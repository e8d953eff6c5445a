import math

import pytest

import firstorder as fo
from firstorder.core.errors import ConfigError
from firstorder.sim.config import Sim
from firstorder.sim.exact.portrait import portrait

TINY = {"vocab": 3, "horizon": 3, "prompts": 1, "layers": 2, "experts": 4, "top_k": 2, "width": 8, "expert_width": 8}
STALE = TINY | {"seed": 6, "sharpness": 1.0, "numerics": {"kind": "noise", "scale": 0.4}, "staleness": 2}


def reward(nodes, name):
    """J of a policy, response by response, from what is said of each prefix."""
    by_prefix = {tuple(node.tokens): node for node in nodes}

    def ahead(prefix):
        node = by_prefix[prefix]
        return sum(
            math.exp(logp) * (ahead((*prefix, token)) if earned is None else earned)
            for token, (logp, earned) in enumerate(zip(node.logp[name], node.rewards, strict=True))
        )

    return ahead(())


@pytest.mark.parametrize("replay", ["disabled", "R2", "R3"])
def test_the_rewards_of_its_policies_are_those_of_a_measurement(replay):
    nodes = portrait(Sim(**STALE))
    found = fo.measure("minirl", {"router_replay.mode": replay}, **STALE)
    assert reward(nodes, replay) == pytest.approx(found.j_seq, rel=1e-12)
    assert reward(nodes, "mu") == pytest.approx(found.j_mu, rel=1e-12)
    assert len(nodes) == found.nodes == 7


def test_its_flips_are_the_flip_rate_of_a_measurement():
    nodes, found = portrait(Sim(**STALE)), fo.measure("minirl", **STALE)
    visits = sum(node.reached for node in nodes)
    rate = sum(node.reached * sum(node.flipped) / len(node.flipped) for node in nodes) / visits
    assert rate == pytest.approx(found.flip_rate, rel=1e-12)
    assert 0 < rate < 1
    for node in nodes:
        assert node.flipped == [a != b for a, b in zip(node.experts["old"], node.experts["mu"], strict=True)]


def test_without_noise_and_staleness_all_its_policies_are_one():
    for node in portrait(Sim(**TINY, numerics={"kind": "exact"})):
        assert len({tuple(values) for values in node.logp.values()}) == 1
        assert node.experts["mu"] == node.experts["old"] == node.experts["theta"]


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": 2},
        {"reading_noise": 0.1},
        {"numerics": {"kind": "batch"}},
        {"numerics": {"kind": "noise", "fresh": True}},
    ],
    ids=["prompts", "readings", "batch", "fresh"],
)
def test_what_cannot_be_drawn_is_refused(change):
    with pytest.raises(ConfigError, match="a portrait takes"):
        portrait(Sim(**TINY | change))
