from dataclasses import replace

import pytest
import torch
from made import made

from firstorder.core.audit.auditor import audit
from firstorder.core.audit.finding import Known
from firstorder.core.audit.good import Kind
from firstorder.core.audit.good import made as good
from firstorder.core.errors import DataError
from firstorder.core.formats import neutral
from firstorder.core.formats.registry import open_dump


def never(kl):
    return torch.inf


def audited(folder, samples, known=None):
    neutral.write(folder / "a.parquet", samples)
    return audit(open_dump([folder]), known or Known(), never)


def test_an_audit_counts_what_it_read_and_has_every_table(tmp_path):
    report = audited(tmp_path, good(Kind()))
    assert report.verdict.fault is None
    assert report.counts["files"] == 1
    assert report.counts["responses"] == 8
    assert report.counts["tokens_sampled"] == sum(int(s.mask.sum()) for s in good(Kind()))
    names = {table.name for table in report.tables}
    assert {"numbers", "by-position", "by-decile", "by-step", "routes-by-layer", "weights", "readings"} <= names
    assert 0 < len(report.views) <= 24


def test_dense_layers_are_said_and_are_no_fault(tmp_path):
    report = audited(tmp_path, good(Kind(dense=1)))
    assert report.verdict.fault is None
    assert any(sentence.startswith("layers 0 route nothing") for sentence in report.inferred)


def test_what_a_reader_met_is_said_with_how_often(tmp_path):
    (tmp_path / "beside.txt").write_text("mine")
    report = audited(tmp_path, good(Kind()))
    assert "1 other file lies beside the dump, unread" in report.inferred


def test_a_dump_of_the_rollout_engine_alone_is_not_called_normal(tmp_path):
    samples = [replace(s, logp_old=None, entropy=None, advantage=None, routes_old=None) for s in good(Kind())]
    report = audited(tmp_path, samples)
    assert report.verdict.fault is None
    assert "cannot be compared: the dump has no log-probs of the trainer" in report.verdict.paragraph
    assert report.silent["off by one"] == ("logp_old",)


def test_an_audit_of_one_response_stands(tmp_path):
    report = audited(tmp_path, made(count=1, steps=1))
    assert report.counts["responses"] == 1


def test_a_dump_without_responses_is_refused(tmp_path):
    neutral.write(tmp_path / "a.parquet", made(count=1, steps=1))
    dump = open_dump([tmp_path])
    empty = replace(dump, format=replace(dump.format, read=lambda paths, options: iter(())))
    with pytest.raises(DataError, match="holds no responses"):
        audit(empty, Known(), never)
