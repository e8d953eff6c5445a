"""Two engines side by side: a clean pair passes, and each fault that is made is named."""

import re
from dataclasses import replace

import pytest
import torch
from toy_engines import Engine

from firstorder.core.audit.arrival import check_arrival
from firstorder.core.audit.disagreement import distribution, fitted_temperature
from firstorder.core.audit.pair import check_pair
from firstorder.core.errors import DataError

TRAINER = Engine(noise=0.02)
ROLLOUT = Engine(noise=0.02, salt=1)


def pair(rollout, trainer, seed=0, arrays=False, **named):
    """The batch of one engine, checked with the other as a function or by its arrays."""
    batch = rollout.sample(seed=seed)
    if arrays:
        routes = trainer.run(batch["tokens"])[1].to(torch.int16)
        routes = torch.where(batch["routes"] < 0, -1, routes)
        return check_pair(**batch | {"logp_pi": trainer.logp(batch["tokens"]), "routes_pi": routes} | named)
    return check_pair(**batch, score=trainer.score, **named)


@pytest.mark.parametrize("arrays", [False, True], ids=["function", "arrays"])
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3, 0.02, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_a_clean_pair_passes(noise, arrays, seed):
    engine = Engine(seed=seed, noise=noise)
    found = pair(engine, replace(engine, salt=1), seed, arrays)
    assert found.passed, found.line
    assert found.line.startswith("pass: mean |D| ")
    found.require()


FAULTS = {
    "temperature": (replace(ROLLOUT, temperature=0.7), TRAINER),
    "truncation": (replace(ROLLOUT, top_p=0.9), TRAINER),
    "other weights": (replace(ROLLOUT, moved=0.3), TRAINER),
    "padding": (ROLLOUT, replace(TRAINER, padding=2.0)),
    "not deterministic": (ROLLOUT, replace(TRAINER, dropout=0.2)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_an_engine_is_named(fault, seed):
    rollout, trainer = FAULTS[fault]
    found = pair(rollout, trainer, seed)
    assert found.cause == fault, found.line
    assert found.line.startswith(f"{fault}: ")
    assert "\n" not in found.line
    with pytest.raises(DataError, match=f"^{fault}: "):
        found.require()


@pytest.mark.parametrize("seed", range(3))
def test_routers_of_another_precision_are_named(seed):
    trainer, rollout = Engine(noise=5e-3), Engine(noise=5e-3, salt=1)
    found = pair(replace(rollout, router_noise=0.1), trainer, seed, arrays=True, limit=0.034)
    assert found.cause == "router precision", found.line
    found = pair(replace(rollout, moved=0.03), trainer, seed, arrays=True, limit=0.034)
    assert found.cause == "other weights", found.line


MISLAID = {
    "off by one": lambda x, mask: torch.roll(x, 1, dims=-1),
    "log-probs shifted": lambda x, mask: torch.roll(x, 3, dims=-1),
    "log-probs of another response": lambda x, mask: torch.roll(x, 1, dims=0),
    "probabilities in place of log-probs": lambda x, mask: torch.where(mask, x.exp(), x),
}


@pytest.mark.parametrize("arrays", [False, True], ids=["function", "arrays"])
@pytest.mark.parametrize("fault", MISLAID)
@pytest.mark.parametrize("seed", range(2))
def test_log_probs_that_are_not_those_of_their_tokens_are_named(fault, arrays, seed):
    batch = ROLLOUT.sample(seed=seed, count=16, shortest=89, longest=90)  # of one length
    batch["logp_mu"] = MISLAID[fault](batch["logp_mu"], batch["mask"])
    trainer = {"logp_pi": TRAINER.logp(batch["tokens"])} if arrays else {"score": TRAINER.score}
    found = check_pair(**batch, **trainer)
    assert found.cause == fault, found.line


@pytest.mark.parametrize(("rollout", "calls"), [(ROLLOUT, 13), (replace(ROLLOUT, temperature=0.7), 35)])
def test_a_trainer_is_not_asked_for_long(rollout, calls):
    asked = []

    def score(tokens, lengths, temperature):
        asked.append(len(tokens))
        return TRAINER.score(tokens, lengths, temperature)

    check_pair(**rollout.sample(), score=score)
    assert len(asked) == calls
    assert max(asked[1:]) == 8


def test_what_was_fitted_is_told():
    found = pair(replace(ROLLOUT, temperature=0.7), TRAINER)
    assert re.search(r"at a temperature of 0\.(69|70)\d? instead of 1: mean \|D\| falls from", found.line)


@pytest.mark.parametrize("temperature", [0.15, 0.5, 0.9, 1.0, 1.3, 4.0])
def test_a_temperature_is_found(temperature):
    tokens = Engine(temperature=temperature).sample()["tokens"]
    mu = Engine(temperature=temperature).logp(tokens).flatten()
    fitted, left = fitted_temperature(mu, lambda at: Engine(temperature=at).logp(tokens).flatten(), 1.0)
    assert fitted == pytest.approx(temperature, rel=2e-4)
    assert left < 1e-3


def test_the_words_of_a_distribution():
    batch = Engine(temperature=0.5).sample()
    tokens, mask = batch["tokens"], batch["mask"]

    def words(rollout):
        return distribution(rollout.logp(tokens)[mask], lambda at: Engine(temperature=at).logp(tokens)[mask], 1.0)

    assert words(Engine(temperature=0.5)) == "they are those at a temperature of 0.5"
    assert words(Engine(moved=0.5)) is None
    kept = Engine(top_p=0.95).sample()
    said = distribution(
        kept["logp_mu"][kept["mask"]], lambda at: Engine(temperature=at).logp(kept["tokens"])[kept["mask"]], 1.0
    )
    assert said.startswith("each is higher, as where the tokens sampled from")


STATES = {"arrived": 0.05, "old": 0.0, "part": 0.025}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("state", STATES)
def test_it_is_told_whether_weights_arrived(state, seed):
    batch = ROLLOUT.sample(seed=seed)
    tokens, new = batch["tokens"], replace(TRAINER, moved=0.05)
    mu = replace(ROLLOUT, moved=STATES[state], noise=0.03).logp(tokens)
    found = check_arrival(mask=batch["mask"], logp_mu=mu, new=new.logp(tokens), before=TRAINER.logp(tokens), limit=0.2)
    assert found.state == state, found.line
    if state != "part":  # log-probs are no linear function of weights, least of all where experts change
        assert found.share == pytest.approx(STATES[state] / 0.05, abs=0.1)
    assert found.passed == (state == "arrived")
    if not found.passed:
        with pytest.raises(DataError, match=r"the old weights|is missing"):
            found.require()


def test_an_update_too_small_to_be_seen_passes_and_says_so():
    tokens = (batch := ROLLOUT.sample())["tokens"]
    new = replace(TRAINER, moved=1e-6).logp(tokens)
    found = check_arrival(mask=batch["mask"], logp_mu=batch["logp_mu"], new=new, before=TRAINER.logp(tokens), limit=0.2)
    assert (found.state, found.passed) == ("unknown", True)
    assert found.line.startswith("cannot be told: ")
    same = check_arrival(mask=batch["mask"], logp_mu=batch["logp_mu"], new=new, before=new, limit=0.2)
    assert same.state == "unknown"


def test_weights_of_another_model_are_neither():
    tokens = (batch := ROLLOUT.sample())["tokens"]
    mu = replace(ROLLOUT, seed=5).logp(tokens)
    new, before = (replace(TRAINER, moved=x).logp(tokens) for x in (0.05, 0.0))
    found = check_arrival(mask=batch["mask"], logp_mu=mu, new=new, before=before, limit=0.2)
    assert (found.state, found.passed) == ("neither", False)


def test_what_cannot_be_compared_is_one_line():
    batch = ROLLOUT.sample(count=3)
    short = {name: batch[name] for name in ("tokens", "mask", "logp_mu")}
    nothing = torch.full_like(batch["logp_mu"], torch.nan)
    with pytest.raises(DataError, match="give logp_pi or score"):
        check_pair(**short)
    with pytest.raises(DataError, match=r"`logp_pi` must be \[3, \d+\] as the tokens are, got \[3, 2\]"):
        check_pair(**short, logp_pi=nothing[:, :2])
    with pytest.raises(DataError, match="no sampled token has two finite log-probs"):
        check_pair(**short | {"mask": torch.zeros_like(batch["mask"])}, logp_pi=nothing)
    with pytest.raises(DataError, match="the trainer must return log-probs"):
        check_pair(**short, score=lambda tokens, lengths, temperature: nothing[:, 1:])
    with pytest.raises(DataError, match="no token has a finite log-prob of all three"):
        check_arrival(mask=batch["mask"], logp_mu=batch["logp_mu"], new=nothing, before=nothing, limit=0.1)


def test_a_trainer_that_answers_nothing_is_named():
    batch = ROLLOUT.sample(count=3)
    found = check_pair(**batch, logp_pi=torch.full_like(batch["logp_mu"], torch.nan))
    assert found.line.startswith("null log-probs: log-probs on the mask that are no numbers")
