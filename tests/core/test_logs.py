import json

import pytest
import torch

from firstorder.core.errors import DataError
from firstorder.core.runs.folder import RunFolder
from firstorder.core.runs.logs import StepLog, cut, read, whole

FIVE = [b'{"step": %d, "kl": [0.5, null]}\n' % step for step in range(5)]

DAMAGED = {
    "a line cut short": (lambda lines: [*lines[:2], lines[2][:9] + b"\n", *lines[3:]], "line 3 is damaged; step 2 is"),
    "a hole": (lambda lines: [lines[0], *lines[3:]], "steps 1 to 2 are missing"),
    "emptied": (lambda lines: [], "steps 0 to 4 are missing"),
    "the end lost": (lambda lines: lines[:3], "steps 3 to 4 are missing"),
    "binary": (lambda lines: [b"\x00\xff\x80PK\x03"], "it holds no whole line; steps 0 to 4 are missing"),
    "binary lines": (lambda lines: [b"\x00\xff\n\x80PK\x03\n"], "line 1 is damaged; line 2 is damaged; steps 0 to 4"),
    "text for a number": (lambda lines: [lines[0].replace(b"0.5", b'"x"'), *lines[1:]], "line 1 is damaged"),
    "infinity": (lambda lines: [lines[0].replace(b"0.5", b"Infinity"), *lines[1:]], "line 1 is damaged"),
    "a list": (lambda lines: [b"[1, 2]\n", *lines[1:]], "line 1 is damaged"),
    "no step": (lambda lines: [b'{"kl": 1}\n', *lines[1:]], "line 1 is damaged"),
    "a step that is true": (lambda lines: [b'{"step": true}\n', *lines[1:]], "line 1 is damaged"),
    "deep brackets": (lambda lines: [b"[" * 100_000 + b"\n", *lines[1:]], "line 1 is damaged"),
    "a step twice": (lambda lines: [lines[0], *lines], "line 2 goes back to step 0"),
    "other members": (lambda lines: [*lines[:4], b'{"step": 4, "kl": 1}\n'], "line 5 changes the members of kl"),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_of_every_kind_is_named_and_the_rest_is_read(name, path):
    spoil, fault = DAMAGED[name]
    path.write_bytes(b"".join(spoil(FIVE)))
    found = read(path, 5)
    assert fault in "; ".join(found.faults)
    assert [json.dumps(line) for line in found.lines] == [text.decode() for text in found.texts]
    assert all(text + b"\n" in FIVE for text in found.texts)
    with pytest.raises(DataError, match="give another run"):
        whole(path, 5, "give another run")


def test_a_log_that_nothing_is_wrong_with_has_no_faults(path):
    path.write_bytes(b"".join(FIVE) + FIVE[0][:7])  # half a line is what a kill leaves
    assert read(path, 5).faults == []
    assert [line["step"] for line in whole(path, 5, "")] == [0, 1, 2, 3, 4]
    cut(read(path), 3)
    assert path.read_bytes() == b"".join(FIVE[:3])
    assert read(path.with_name("none.jsonl")).faults == []


def test_a_run_that_goes_on_says_what_its_logs_lack(tmp_path, caplog):
    folder = RunFolder(tmp_path / "run", {}, resume=False)
    for step in range(4):
        folder.append(StepLog(step=step, metrics={"kl": torch.ones(())}, receipts={"masked": torch.zeros(())}))
    folder.save(4, {"weights": torch.ones(3)})
    kept = (folder.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder.path / "metrics.jsonl").write_bytes(b"".join([kept[0], kept[3]]))
    (folder.path / "receipts.jsonl").write_bytes(b"")
    assert folder.latest().step == 4
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"{folder.path}/metrics.jsonl: steps 1 to 2 are missing; the run goes on from step 4 without them",
        f"{folder.path}/receipts.jsonl: steps 0 to 3 are missing; the run goes on from step 4 without them",
    ]
    assert (folder.path / "metrics.jsonl").read_bytes() == b"".join([kept[0], kept[3]])
    folder.close()
