"""A run is audited, and once more after a fault has been put into its dump: log-probs that are laid out one row late.

    python docs/examples/audit.py [FOLDER]

The folder, a temporary one unless given, keeps the run, both dumps and nothing else.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import firstorder as fo
from firstorder.core.formats import neutral
from firstorder.core.formats.registry import open_dump
from firstorder.core.formats.sample import Sample

WORLD = {"sim.world": "graph", "sim.task": "chain", "sim.horizon": 64, "sim.numerics.kind": "fp8"}
SIZE = {"schedule.steps": 2, "schedule.prompts": 4, "schedule.group_size": 8}


def late(samples: Iterator[Sample]) -> list[Sample]:
    """The same responses, the log-prob of each token with the token after it; that of the first one stands twice."""
    moved = []
    for sample in samples:
        assert sample.logp_mu is not None
        rolled = torch.where(sample.mask.roll(1), sample.logp_mu.roll(1), sample.logp_mu)
        moved.append(replace(sample, logp_mu=torch.where(sample.mask, rolled, 0.0)))
    return moved


def verdicts(folder: Path) -> tuple[str, str]:
    """The paragraphs of both audits."""
    fo.train("minirl-r3", WORLD | SIZE, out=folder / "run", dump="neutral")
    neutral.write(folder / "late.parquet", late(open_dump([folder / "run/dump"]).samples()))
    good, bad = fo.audit(folder / "run/dump"), fo.audit(folder / "late.parquet")
    assert (good.code, bad.code) == (0, 1)
    return good.report.verdict.paragraph, bad.report.verdict.paragraph


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for paragraph in verdicts(Path(sys.argv[1] if len(sys.argv) > 1 else scratch)):
            print(paragraph, end="\n\n")
