"""A device is refused where a file is read: it has no end, and would fill the memory."""

import pytest

from firstorder.backends.tasks.problems import read
from firstorder.cli.api.evidence import read_evidence
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe

DEVICES = ("/dev/zero", "/dev/full", "/dev")


@pytest.mark.parametrize("device", DEVICES)
def test_a_record_that_is_no_file_is_not_read_without_end(device, capsys):
    assert run(["validate", "--expect", device]) == 2
    assert f"--expect {device} cannot be read (not a file)" in capsys.readouterr().err


@pytest.mark.parametrize("device", DEVICES)
def test_problems_that_are_no_file_are_not_read_without_end(device):
    with pytest.raises(ConfigError, match=f"cannot read {device}: not a file; give task.files"):
        read([device], "prompt", "answer", lambda answer: "")


@pytest.mark.parametrize("device", DEVICES)
def test_evidence_that_is_no_file_is_not_read_without_end(device):
    with pytest.raises(ConfigError, match=f"--evidence {device} is not a gate.json"):
        read_evidence(Recipe(), device)
