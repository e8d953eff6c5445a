from dataclasses import replace
from functools import reduce

import torch

from firstorder.core.audit.finding import Known, merged
from firstorder.core.audit.good import Kind, made
from firstorder.core.audit.unrelated import judge_unrelated, pair_sums
from firstorder.core.formats.chunk import chunks


def judged(samples):
    return judge_unrelated(reduce(merged, map(pair_sums, chunks(samples, positions=500))), Known())


def test_engines_that_are_far_apart_are_still_related():
    for seed in range(4):
        assert judged(made(Kind(spread=0.5, sharp=6.0), seed)) is None


def test_log_probs_of_other_tokens_are_not():
    g = torch.Generator().manual_seed(0)
    mixed = []
    for sample in made(Kind(spread=0.05)):
        order = torch.randperm(int(sample.mask.sum()), generator=g)
        logp = sample.logp_mu.clone()
        logp[sample.mask] = logp[sample.mask][order]
        mixed.append(replace(sample, logp_mu=logp))
    found = judged(mixed)
    assert found.fault == "unrelated log-probs"
    assert "correlate by -0.0" in found.evidence or "correlate by 0.0" in found.evidence


def test_tokens_that_are_all_nearly_certain_are_left_alone():
    g = torch.Generator().manual_seed(0)
    sure = [
        replace(
            s,
            logp_mu=torch.where(s.mask, -1e-6 * torch.rand(len(s.mask), generator=g).double(), 0.0),
            logp_old=torch.where(s.mask, -1e-6 * torch.rand(len(s.mask), generator=g).double(), 0.0),
        )
        for s in made(Kind())
    ]
    assert judged(sure) is None


def test_a_few_tokens_are_no_evidence():
    assert judged(made(Kind(responses=1, length=20))) is None
