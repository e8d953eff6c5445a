"""A run is dumped, written in every format, and audited: the numbers are those that the run has logged."""

from dataclasses import replace
from functools import reduce

import pytest
import writers_miles
import writers_nemo_rl
import writers_prime_rl
import writers_responses
import writers_skyrl
import writers_slime
import writers_verl

import firstorder as fo
from firstorder.core.audit.tally import merged, tally
from firstorder.core.formats.chunk import chunks
from firstorder.core.formats.registry import open_dump

SMALL = {"schedule.steps": 2, "schedule.prompts": 4, "schedule.group_size": 4}
BOTH = ("kl", "k3_kl", "chi2_token", "seq_eff_sample_size", "rollout_probs_diff_mean", "response_length")
SINGLE = dict.fromkeys(BOTH, 2e-4)  # relative: log-probs are float32, whose roundings a KL of 1e-3 is made of
WRITTEN = {
    "neutral": (lambda folder, samples: None, (*BOTH, "reward", "update/entropy", "route/flip_rate")),
    "prime-rl": (writers_prime_rl.write, (*BOTH, "update/entropy")),
    "nemo-rl": (writers_nemo_rl.write, (*BOTH, "reward")),
    "slime": (writers_slime.write, (*BOTH, "reward", "update/entropy")),
    "miles": (writers_miles.write, (*BOTH, "reward", "update/entropy")),
    "skyrl": (writers_skyrl.write, BOTH),
    "verl": (writers_verl.write, ("response_length", "reward")),
    "vllm": (
        lambda folder, samples: writers_responses.write(folder, samples, writers_responses.completion),
        (),
    ),
    "sglang": (
        lambda folder, samples: writers_responses.write(folder, samples, writers_responses.generate),
        (),
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return fo.train("minirl-r3", SMALL, out=folder, dump="neutral")


@pytest.fixture(scope="module")
def samples(trained):
    """What was dumped, with log-probs of single precision, as engines send them."""
    return [
        replace(s, **{name: getattr(s, name).float().double() for name in ("logp_mu", "logp_old", "entropy")})
        for s in open_dump([trained.folder / "dump"]).samples()
    ]


def audited(samples):
    return reduce(merged, map(tally, chunks(samples)))


def by_layer(samples):
    """The rows of the table of routes."""
    (table,) = (each for each in audited(samples).tables() if each.name == "routes-by-layer")
    return table.rows


@pytest.mark.parametrize("name", WRITTEN)
def test_a_dump_audits_to_the_numbers_of_its_run(trained, samples, tmp_path, name):
    write, logged = WRITTEN[name]
    write(tmp_path, samples)
    folder = trained.folder / "dump" if name == "neutral" else tmp_path
    dump = open_dump([folder])
    assert dump.format.name == name
    found, expected = audited(dump.samples()), audited(samples)
    assert found.counts == expected.counts
    if name in ("vllm", "sglang"):  # what an engine answers: no trainer, and routes in full
        assert by_layer(dump.samples()) == by_layer([replace(s, routes_old=None) for s in samples])
    for line, own, step in zip(found.lines(), expected.lines(), trained.steps, strict=True):
        for quantity in logged:
            exact = name == "neutral"
            assert line[quantity] == pytest.approx(own[quantity], rel=1e-3 if exact else 1e-12, abs=1e-7), quantity
            tolerance = 1e-12 if exact else SINGLE.get(quantity, 1e-5)
            assert line[quantity] == pytest.approx(step[quantity], rel=tolerance, abs=1e-12 if exact else 1e-7), (
                quantity
            )
