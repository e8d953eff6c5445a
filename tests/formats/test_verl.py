import json
from dataclasses import replace

import pytest
import torch
from alike import COLUMNS, differing, doubled, refusal, same
from made import made
from writers_verl import as_arrays, consolidated, objects, others_of, padded, proto, queue, ragged, save_queue, write

from firstorder.core.errors import DataError
from firstorder.core.formats.format import Options
from firstorder.core.formats.verl import VERL, read

HELD = tuple(name for name in COLUMNS if name != "routes_old")


def back(paths, **options):
    return list(read(paths, Options(**options)))


def numbered(samples):
    """Prompts of a batch are numbered from 0 on, in the order in which they come."""
    first = {step: min(s.group for s in samples if s.step == step) for step in {s.step for s in samples}}
    return [replace(s, group=s.group - first[s.step]) for s in samples]


@pytest.mark.parametrize(
    "how",
    [write, lambda folder, samples: write(folder, samples, as_arrays), queue],
    ids=["consolidated", "arrays", "queue"],
)
def test_a_batch_gives_the_samples_to_the_last_digit(tmp_path, how):
    samples = made(seed=11, steps=3)
    read_back = back(how(tmp_path, samples)[::-1])
    assert [differing(a, b, HELD) for a, b in zip(numbered(samples), read_back, strict=True)] == [[]] * len(samples)


@pytest.mark.parametrize("how", [write, queue])
def test_a_copy_shifted_by_one_row_is_read_back_shifted(tmp_path, how):
    samples = numbered(made(seed=11, steps=1))
    moved = [replace(s, logp_mu=s.logp_mu.roll(1), routes=s.routes.roll(1, 0)) for s in samples]
    assert not any(same(a, b, HELD) for a, b in zip(samples, back(how(tmp_path, moved)), strict=True))


def test_rows_of_zeros_at_the_end_are_missing_and_all_zeros_are_kept(tmp_path):
    samples = made(seed=11, steps=1)
    fields = padded(samples)
    start = int(fields["attention_mask"][0].nonzero()[0])
    length = len(samples[0].tokens)
    fields["routed_experts"][0, start + length - 4 : start + length] = 0
    fields["routed_experts"][1] = 0
    path = proto(tmp_path / "4" / "gen_batch.dp", consolidated(fields), {}, {})
    first, second, *_ = back([path])
    assert first.step == 4
    assert first.notes["route rows missing at the end"] == 3
    assert torch.equal(first.routes[:-4], samples[0].routes[:-4])
    assert set(first.routes[-4:].flatten().tolist()) == {-1}
    assert set(second.routes[:-1].flatten().tolist()) == {0}
    assert set(back([path], fill="none")[0].routes[-4:-1].flatten().tolist()) == {0}


def test_a_version_is_known_where_the_first_and_the_last_agree(tmp_path):
    samples = made(steps=1)
    others = others_of(samples) | {"max_global_steps": objects([5] + [0] * (len(samples) - 1))}
    first, second, *_ = back([proto(tmp_path / "0" / "gen_batch.dp", consolidated(padded(samples)), others, {})])
    assert set(first.version.tolist()) == {-1}
    assert first.notes["weight versions in one response"] == 2
    assert set(second.version.tolist()) == {0}


def test_rows_that_are_all_padding_are_left_out_and_counted(tmp_path):
    fields = padded(made(steps=1))
    fields["attention_mask"][2] = 0
    read_back = back([proto(tmp_path / "0" / "gen_batch.dp", consolidated(fields), {}, {})])
    assert len(read_back) == 5
    assert read_back[2].notes["rows that are all padding, left out"] == 1


def test_the_step_is_that_of_the_file_then_of_meta_json_then_of_the_folder(tmp_path):
    written = consolidated(padded(made(steps=1)))
    path = proto(tmp_path / "7" / "gen_batch.dp", written, {}, {"global_steps": 5})
    assert back([path])[0].step == 5
    proto(path, written, {}, {})
    (path.parent / "meta.json").write_text(json.dumps({"global_steps": 6}))
    assert back([path])[0].step == 6
    (path.parent / "meta.json").write_text("[")
    assert back([path])[0].step == 7
    lost = proto(tmp_path / "x" / "y" / "gen_batch.dp", written, {}, {})
    with pytest.raises(DataError, match="says the step; name its folder N"):
        back([lost])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": None}, "`attention_mask` must be of rows and columns; got NoneType"),
        ({"response_mask": None}, "row 0: `response_mask` is missing"),
        ({"routed_experts": torch.zeros(6, 2, 3, 2)}, "`routed_experts` must have a row for every token"),
        ({"old_log_probs": torch.zeros(5, 3)}, "`old_log_probs` must have 6 rows of a response; got 5 x 3"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_file(tmp_path, change, message):
    fields = {name: value for name, value in (padded(made(steps=1)) | change).items() if value is not None}
    path = proto(tmp_path / "0" / "gen_batch.dp", consolidated(fields), {}, {})
    with pytest.raises(DataError, match=message) as refused:
        back([path])
    assert "gen_batch.dp" in str(refused.value)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "the DataProto holds no tensors"),
        (b"x", "gen_batch.dp is no whole file of torch.save"),
        (((6,), None, {"prompts": ("int64", (9, 9), b"12")}), "its bytes are expected as an array of bytes"),
        (((6,), None, {"prompts": 3}), "what it says of a tensor is not understood"),
    ],
)
def test_a_data_proto_of_something_else_is_refused(tmp_path, written, message):
    with pytest.raises(DataError, match=message):
        back([proto(tmp_path / "0" / "gen_batch.dp", written, {}, {})])


def test_a_queue_whose_fields_differ_in_rows_is_refused(tmp_path):
    samples = made(steps=1)
    fields = ragged(samples) | {"rollout_log_probs": ragged(samples[:4])["rollout_log_probs"]}
    save_queue(tmp_path / "tq_batch.pt", {"tags": [], "keys": [], "global_steps": 0}, fields)
    with pytest.raises(DataError, match="`rollout_log_probs` must have 6 rows"):
        back([tmp_path / "tq_batch.pt"])


def test_files_are_recognised_by_the_class_that_they_name(tmp_path):
    files = [*write(tmp_path / "a", made(steps=1)), *queue(tmp_path / "b", made(steps=1))]
    assert all(VERL.recognise(path) for path in files)
    torch.save({"weights": torch.ones(3)}, tmp_path / "model.pt")
    assert not any(VERL.recognise(tmp_path / name) for name in ("model.pt", "missing.dp"))


def test_a_value_that_refers_to_itself_over_and_over_is_never_walked_through(tmp_path):
    samples = made(steps=1)
    others = {name: objects([doubled()] * len(samples)) for name in others_of(samples)}
    written = consolidated(padded(samples))
    path = proto(tmp_path / "0" / "gen_batch.dp", written, others, {"global_steps": doubled()})
    assert [sample.group for sample in back([path])] == [None] * len(samples)
    for odd in (doubled(), (doubled(),) * 3, ((6,), None, {"prompts": (doubled(),) * 3, "responses": doubled()})):
        assert "gen_batch.dp" in refusal(lambda odd=odd: back([proto(path, odd, {}, {})]))
    top = {"tags": doubled(), "keys": [doubled()] * len(samples), "global_steps": 0}
    save_queue(tmp_path / "tq_batch.pt", top, ragged(samples))
    assert len(back([tmp_path / "tq_batch.pt"])) == len(samples)
