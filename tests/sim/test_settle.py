"""Claims over processes: the outcomes of one process, in the order asked for."""

import pytest

from firstorder.core.progress import watched
from firstorder.core.runs.files import to_json
from firstorder.sim.claims import CLAIMS, Budget, settle
from firstorder.sim.sweep.pool import Local

TINY = Budget(policies=2, draws=1, first_seed=41)
CHOSEN = [claim for claim in CLAIMS if claim.id in ("group-mean", "length-norm-floor")]


def written(settled):
    return [to_json({**each.json(), "seconds": 0}) for each in settled]


def test_two_processes_settle_what_one_does_to_the_same_bytes(monkeypatch):
    monkeypatch.setattr(Local, "cores", 2, raising=False)
    told = []
    with watched(lambda what, done, total, note: told.append((what, done, total))):
        apart = settle.settle(CHOSEN, TINY)
    assert written(apart) == written(settle.here(CHOSEN, TINY))
    assert (told[0], told[-1]) == (("claims", 0, 2), ("claims", 2, 2))


def test_theorems_share_a_process_and_can_be_told_apart():
    together, *alone = settle._jobs(CLAIMS, TINY)
    assert together.ids == tuple(claim.id for claim in CLAIMS if claim.kind == "theorem")
    assert [job.ids for job in alone] == [(claim.id,) for claim in CLAIMS if claim.kind == "empirical"]
    assert [part.ids for part in together.split()] == [(each,) for each in together.ids]
    assert alone[0].split() == []
    assert together.title == "claim value-identity and 13 more"


def test_a_claim_that_fails_to_be_settled_is_named():
    def check(budget):
        raise ZeroDivisionError

    (claim, *_) = CHOSEN
    broken = type(claim)(**{**vars(claim), "check": check})
    with pytest.raises(ZeroDivisionError) as caught:
        settle.here([broken], TINY)
    assert caught.value.__notes__ == ["while claim group-mean was settled"]
