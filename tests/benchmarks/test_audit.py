"""What an audit costs beside the reading of its dump, at the sizes of a large model: 48 MoE layers of 8 experts."""

import os

import pytest
import torch

from firstorder.core.audit.auditor import audit
from firstorder.core.audit.finding import Known
from firstorder.core.formats import neutral
from firstorder.core.formats.registry import open_dump
from firstorder.core.formats.sample import Sample

RESPONSES = int(os.environ.get("FIRSTORDER_RESPONSES", "8"))  # 1,000 of them are a million tokens
PROMPT, TOKENS, LAYERS, EXPERTS, TOP_K = 100, 1000, 48, 128, 8


def routes(g):
    """Distinct ids in every row: an arithmetic progression with an odd step."""
    shape = (PROMPT + TOKENS, LAYERS, 1)
    first, step = (
        torch.randint(0, EXPERTS, shape, generator=g),
        2 * torch.randint(0, EXPERTS // 2, shape, generator=g) + 1,
    )
    ids = ((first + step * torch.arange(TOP_K)) % EXPERTS).to(torch.int16)
    ids[-1] = -1
    return ids


def response(number, g):
    mask = torch.arange(PROMPT + TOKENS) >= PROMPT
    mu = torch.where(mask, -torch.rand(len(mask), generator=g).mul(2).square().double() - 1e-3, 0.0)
    noise = 0.02 * torch.randn(len(mask), generator=g).double()
    return Sample(
        source=f"response {number}",
        step=number * 10 // RESPONSES,
        tokens=torch.randint(0, 150_000, (len(mask),), generator=g),
        mask=mask,
        logp_mu=mu,
        logp_old=torch.where(mask, (mu + noise).clamp(max=-1e-6), 0.0),
        advantage=torch.where(mask, number % 2 - 0.5, 0.0).double(),
        routes=routes(g),
        reward=float(number % 2),
        group=number // 8,
    )


@pytest.fixture
def dump(tmp_path):
    g = torch.Generator().manual_seed(0)
    neutral.write(tmp_path / "a.parquet", [response(number, g) for number in range(RESPONSES)])
    return open_dump([tmp_path])


def test_an_audit_beside_reading_its_dump(in_turns, dump):
    def read():
        assert sum(len(sample.tokens) for sample in dump.samples()) == RESPONSES * (PROMPT + TOKENS)

    def audited():
        assert audit(dump, Known(), lambda kl: torch.inf).counts["tokens_sampled"] == RESPONSES * TOKENS

    in_turns(rounds=5, reading_a_dump=read, audit_of_a_dump=audited)
