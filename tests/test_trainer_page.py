"""The page for people with a trainer of their own: what it shows runs, and the causes that it names are there."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import torch

from firstorder.core.audit import pair

sys.path.insert(0, str(Path(__file__).parent / "audit"))

from toy_engines import Engine

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/trainer.md").read_text()
OWN = ("not deterministic", "padding", "temperature", "router precision", "other weights")


def given():
    """What a trainer has at hand where the page begins."""
    batch = Engine(noise=0.02, salt=1).sample()
    trainer = Engine(noise=0.02)
    tokens, sampled = batch["tokens"], batch["mask"]
    logp = trainer.logp(tokens)
    return {
        "torch": torch,
        "tokens": tokens,
        "sampled": sampled,
        "mask": sampled,
        "rollout_logprobs": batch["logp_mu"],
        "mu": batch["logp_mu"],
        "logp": logp.clone().requires_grad_(),
        "old": logp,
        "advantage": torch.linspace(-1, 1, len(tokens)).double(),
        "score": lambda rows: logp[rows].clone().requires_grad_(),
        "score_tokens": trainer.score,
        "new": logp,
        "before": replace(trainer, moved=0.05).logp(tokens),
    }


def test_the_examples_of_the_page_run(capsys):
    namespace = given()
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL):
        exec(block, namespace)
    passed, arrived = capsys.readouterr().out.splitlines()
    assert passed in PAGE
    assert arrived.startswith("the weights arrived: ")


def test_every_cause_on_the_page_has_a_detector_of_its_name():
    table = PAGE[PAGE.index("| cause |") :].split("\n\n")[0]
    causes = {name.strip() for row in table.splitlines()[2:] for name in row.split("|")[1].split(",")}
    named = {detector.fault for detector in pair.DETECTORS} | set(OWN)
    plain = {name for name in causes if not name.startswith(("routes", "filled", "of other layers", "ranges"))}
    assert plain - named <= {"all 0", "stored coarsely", "constant"}  # of log-probs
    assert set(OWN) <= causes
