import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.sim.exact import objectives
from firstorder.sim.exact.bounds import bounds
from firstorder.sim.exact.scene import MODES

NAMES = ["adaptive", "classical", "coupling", "cpo", "halved", "linear", "mixed", "pinsker_marginal", "reach", "trpo"]


def by_hand(lab, mode, context):
    """The published formulas with their constants halved, over a loop of prefixes."""
    horizon, target = lab.sim.horizon, lab.target[mode]
    tv, kl, at = {}, {}, {}
    for prompt, response in lab.pairs:
        for t in range(len(response)):
            prefix = context(lab.sim, prompt, response[:t])
            p, q = (e.run(prefix)[1].tolist() for e in (target, lab.mu))
            tv[prefix] = 0.5 * sum(abs(math.exp(a) - math.exp(b)) for a, b in zip(p, q, strict=True))
            kl[prefix] = sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))
            at[prefix] = (t + 1, at.get(prefix, (0, 0.0))[1] + lab.chance[prompt, response])
    eps, delta = max(tv.values()), max(kl.values())
    steps = range(1, horizon + 1)
    mean_tv = {t: sum(w * tv[c] for c, (s, w) in at.items() if s == t) for t in steps}
    total_kl = sum(w * kl[c] for c, (_, w) in at.items())
    half = min(1.0, math.sqrt(delta / 2))
    adaptive = 0.0
    for t in steps:
        adaptive += mean_tv[t] * min(1.0, (horizon - t) * eps, math.sqrt((horizon - t) * delta / 2))
    worth, drift, start, slope = advantages(lab, mode, context)
    return {
        "trpo": 4 * eps * worth * sum(1 - (1 - eps) ** (t - 1) for t in steps),
        "cpo": 2 * drift * sum((horizon - t) * mean_tv[t] for t in steps),
        "reach": max(abs(start + slope), abs(1 - start - slope)),
        "classical": horizon * (horizon - 1) * eps**2,
        "pinsker_marginal": 2 * half * sum(min(1.0, math.sqrt((t - 1) * delta / 2)) for t in steps),
        "mixed": 2 * horizon * half * min(1.0, math.sqrt(total_kl / 2)),
        "coupling": 2 * min(1.0, eps) * sum(min(1.0, (t - 1) * eps) for t in steps),
        "adaptive": 2 * adaptive,
        "linear": 2 * sum(mean_tv.values()),
        "halved": sum(mean_tv.values()),
    }


def advantages(lab, mode, context):
    """Largest |A| and |E_pi A| of mu, J(mu) and L', over a loop of prefixes."""
    earned, likely, said = {}, {}, {}
    start = 0.0
    for prompt, response in lab.pairs:
        chance, reward = lab.chance[prompt, response], lab.reward[prompt, response]
        start += chance * reward
        for t, token in enumerate(response):
            prefix = context(lab.sim, prompt, response[:t])
            said[prefix] = None
            for table, gain in ((earned, chance * reward), (likely, chance)):
                table[prefix, token] = table.get((prefix, token), 0.0) + gain
    worth = drift = slope = 0.0
    for prefix in said:
        p, q = (e.run(prefix)[1].tolist() for e in (lab.target[mode], lab.mu))
        tokens = [v for v in range(lab.sim.vocab) if (prefix, v) in likely]
        mass = sum(likely[prefix, v] for v in tokens)
        q_of = {v: earned[prefix, v] / likely[prefix, v] for v in tokens}
        value = sum(math.exp(q[v]) * q_of[v] for v in tokens)
        worth = max(worth, *(abs(q_of[v] - value) for v in tokens))
        drift = max(drift, abs(sum(math.exp(p[v]) * (q_of[v] - value) for v in tokens)))
        slope += mass * sum((math.exp(p[v]) - math.exp(q[v])) * q_of[v] for v in tokens)
    return worth, drift, start, slope


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "change",
    [
        {"staleness": 2, "lr": 3.0},
        {"horizon": 2, "prompts": 3, "seed": 2},
        {"horizon": 1},
        {"task": "guess", "vocab": 4, "staleness": 1},
    ],
)
def test_every_bound_is_its_formula(mode, change, small, make_lab, make_scene, reference):
    sim = small(**change)
    found = {name: float(b) for name, b in bounds(make_scene(sim), mode).items()}
    assert sorted(found) == NAMES
    assert found == pytest.approx(by_hand(make_lab(sim), mode, reference.context), rel=1e-9, abs=1e-13)


@given(
    st.fixed_dictionaries(
        {
            "task": st.sampled_from(["sum", "program", "text", "guess"]),
            "vocab": st.integers(2, 4),
            "horizon": st.integers(1, 4),
            "prompts": st.just(1),
            "seed": st.integers(0, 999),
            "staleness": st.integers(0, 2),
            "lr": st.floats(0.01, 20.0),
            "sharpness": st.floats(0.1, 6.0),
            "reward": st.sampled_from(["binary", "graded"]),
            "truncated": st.sampled_from(["zero", "scored"]),
            "numerics": st.fixed_dictionaries(
                {"kind": st.sampled_from(["noise", "fp8", "bf16"]), "scale": st.floats(1e-4, 2.0)}
            ),
        }
    )
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_bound_holds_in_every_simulator(small, make_scene, drawn):
    if drawn["vocab"] == 2:
        drawn = drawn | {"staleness": 0}  # there is one prompt, and θ moves on others
    if drawn["task"] == "guess":
        drawn = drawn | {"vocab": 4}
    scene = make_scene(small(**drawn))
    for mode in MODES:
        found = objectives.values(scene, mode)
        error = float(found.error.abs())
        for name, bound in bounds(scene, mode).items():
            assert error <= float(bound) * (1 + 1e-9) + 1e-14, name
