from dataclasses import replace

import pytest
import torch
from alike import COLUMNS, differing, doubled, refusal, same
from fakes import named
from made import made
from writers_slime import as_numpy, rollout, trained, write

from firstorder.core.errors import DataError
from firstorder.core.formats import layout
from firstorder.core.formats.format import Options
from firstorder.core.formats.registry import open_dump
from firstorder.core.formats.slime import SLIME, read

HELD = tuple(name for name in COLUMNS if name != "routes_old")


def back(paths):
    return list(read(paths, Options()))


@pytest.mark.parametrize("array", [torch.as_tensor, as_numpy])
def test_a_rollout_and_a_train_file_give_the_samples_to_the_last_digit(tmp_path, array):
    samples = made(seed=5, steps=3)
    read_back = back(write(tmp_path, samples, array)[::-1])
    assert [differing(a, b, HELD) for a, b in zip(samples, read_back, strict=True)] == [[]] * len(samples)
    assert read_back[7].source == f"{tmp_path}/rollout_data/1.pt sample 1"
    assert all(torch.equal(s.columns["ref_log_probs"], s.logp_old) for s in read_back)


def test_a_copy_shifted_by_one_row_is_read_back_shifted(tmp_path):
    samples = made(seed=5)
    moved = [replace(s, logp_mu=s.logp_mu.roll(1), routes=s.routes.roll(1, 0)) for s in samples]
    read_back = back(write(tmp_path, moved))
    assert not any(same(a, b, HELD) for a, b in zip(samples, read_back, strict=True))


def test_a_rollout_file_alone_has_no_trainer_and_a_train_file_alone_no_routes(tmp_path):
    samples = made(seed=6)
    rolled = back(write(tmp_path / "a", samples, parts=("rollout",)))
    alone = back(write(tmp_path / "b", samples, parts=("train",)))
    trainer = ("logp_old", "entropy", "advantage")
    assert all(same(a, b, [n for n in HELD if n not in trainer]) for a, b in zip(samples, rolled, strict=True))
    assert all(getattr(sample, name) is None for sample in rolled for name in trainer)
    engine = ("routes", "version")
    held = [n for n in HELD if n not in engine]
    assert all(same(a, b, held, ("step",)) for a, b in zip(samples, alone, strict=True))
    assert all(getattr(sample, name) is None for sample in alone for name in engine)


def save(folder, rolled, train=None, step=0):
    torch.save({"rollout_id": step, "samples": rolled}, folder / "a.pt")
    if train is not None:
        torch.save({"format_version": 2, "rollout_id": step, "rank": 0, "samples": train}, folder / "b.pt")
    return sorted(folder.glob("*.pt"))


def test_trained_samples_are_joined_by_position_then_index_then_tokens(tmp_path):
    samples = made(seed=7, steps=1)
    rolled = [rollout(s, 100 + i) for i, s in enumerate(samples)]
    order = [4, 1, 3]
    for drop in ((), ("rollout_position",), ("rollout_position", "sample_index")):
        train = [{k: v for k, v in trained(samples[i], 100 + i, i).items() if k not in drop} for i in order]
        read_back = back(save(tmp_path, rolled, train))
        assert all(same(samples[i], b, HELD) for i, b in zip(order, read_back, strict=True))
        assert read_back[0].notes["rollout samples without train data"] == 3


def test_files_of_two_runs_are_not_joined(tmp_path):
    one, other = made(seed=1, steps=1), made(seed=2, steps=1)
    files = save(tmp_path, [rollout(s, i) for i, s in enumerate(one)], [trained(s, 0, i) for i, s in enumerate(other)])
    with pytest.raises(DataError, match=r"b\.pt sample 0: the rollout file has other tokens in .*a\.pt sample 0"):
        back(files)


def test_versions_of_several_requests_are_not_given_to_tokens(tmp_path):
    sample = rollout(made(steps=1)[0], 0) | {"weight_versions": ["3", "4", "4"]}
    (read_back,) = back(save(tmp_path, [sample]))
    assert set(read_back.version.tolist()) == {-1}
    assert read_back.notes["weight versions in one response"] == 2


def test_top_p_is_counted_for_every_token(tmp_path):
    made_one = made(steps=1)[0]
    sample = rollout(made_one, 0)
    offsets = torch.arange(sample["response_length"] + 1, dtype=torch.int32) * 3
    sample |= {"rollout_top_p_token_ids": torch.zeros(int(offsets[-1]), dtype=torch.int32)}
    (read_back,) = back(save(tmp_path, [sample | {"rollout_top_p_token_offsets": offsets}]))
    assert read_back.columns["rollout_top_p_tokens"].tolist() == (3.0 * made_one.mask).tolist()


def test_log_probs_that_differ_between_the_two_files_are_counted(tmp_path):
    sample = made(steps=1)[1]
    train = trained(sample, 0, 0)
    train["rollout_log_probs"] = train["rollout_log_probs"].clone()
    train["rollout_log_probs"][-1] -= 1
    (read_back,) = back(save(tmp_path, [rollout(sample, 0)], [train]))
    assert read_back.notes["rollout_log_probs that differ between the rollout file and the train file"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "sample 0: `tokens` must be a list of numbers; got NoneType"),
        ({"tokens": [1, 2.5]}, "sample 0: `tokens` must hold whole numbers"),
        ({"tokens": [[1], [2]]}, "sample 0: `tokens` must hold numbers; got list"),
        ({"tokens": []}, "sample 0: `response_length` must be 0 to 0"),
        ({"response_length": 10**6}, "`response_length` must be 0 to"),
        ({"rollout_log_probs": [0.0]}, "`rollout_log_probs` has 1 entries and the response"),
        ({"rollout_routed_experts": torch.zeros(99999, 3, 2, dtype=torch.int32)}, "has 99999 rows and the sample"),
        ({"rollout_routed_experts": torch.full((1, 3, 2), 40000)}, "holds the experts 40000 to 40000"),
        ({"rollout_routed_experts": torch.zeros(3, 2, dtype=torch.int32)}, "tokens x layers x experts"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_sample(tmp_path, change, message):
    files = save(tmp_path, [rollout(made(steps=1)[0], 0) | change])
    with pytest.raises(DataError, match=message) as refused:
        back(files)
    assert "a.pt" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_files_of_one_rollout_are_refused(tmp_path):
    files = write(tmp_path / "a", made(steps=1)) + write(tmp_path / "b", made(steps=1))
    with pytest.raises(DataError, match="are both of rollout 0; give the dump of one run"):
        back(files)


def test_rows_and_layers_are_kept_as_the_file_has_them_unless_the_user_says(tmp_path):
    sample = made(steps=1, layers=4)[0]
    rows = sample.routes[:-1].int().clone()
    rows[2] = 0
    files = save(tmp_path, [rollout(sample, 0) | {"rollout_routed_experts": rows[:-2]}])
    (plain,), (told,) = back(files), open_dump(files, "slime", Options(fill="zeros", layers=(1, 3))).samples()
    assert plain.notes["route rows missing at the end"] == 2
    assert plain.routes[2].tolist() == [[0, 0]] * 4
    assert told.routes[2].tolist() == [[-1, -1]] * 2
    assert torch.equal(told.routes[:2], sample.routes[:2, [1, 3]])


def test_files_are_recognised_by_their_first_bytes(tmp_path):
    files = write(tmp_path, made(steps=1))
    assert all(SLIME.recognise(path) for path in files)
    (files[0].parent / "eval_0.pt").write_bytes(files[0].read_bytes())
    torch.save({"weights": torch.ones(3)}, tmp_path / "model.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("rollout_data/eval_0.pt", "model.pt", "empty.pt", "missing.pt", "rollout_data"):
        assert not SLIME.recognise(tmp_path / name)


def test_samples_that_share_what_they_hold_cannot_be_more_than_the_file(tmp_path):
    sample = rollout(made(steps=1)[0], 0)
    with pytest.raises(DataError, match="`samples` holds one sample twice"):
        back(save(tmp_path, [sample, sample]))
    one = sample | {"tokens": torch.zeros(100_000, dtype=torch.uint8), "rollout_log_probs": None, "loss_mask": None}
    with pytest.raises(DataError, match="more tokens than bytes in the file"):
        back(save(tmp_path, [dict(one) for _ in range(9)]))


def test_routes_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    files = save(tmp_path, [rollout(made(steps=1)[0], 0)])
    monkeypatch.setattr(layout, "available", lambda: 100)
    with pytest.raises(DataError, match="would fill half of the free memory"):
        back(files)


@pytest.mark.parametrize(
    ("change", "reward"),
    [({"reward": {"score": 1.0}}, 0.25), ({"reward": None}, 0.25), ({"reward": 3}, 3.0)],
)
def test_the_reward_is_that_of_the_rollout_or_the_raw_one_of_the_train_file(tmp_path, change, reward):
    sample = made(steps=1)[0]
    save(tmp_path, [rollout(sample, 0) | change])
    saved = {"format_version": 2, "rollout_id": 0, "rank": 0, "samples": [trained(sample, 0, 0)], "raw_reward": [0.25]}
    torch.save(saved, tmp_path / "b.pt")
    (both,), (alone,) = back(sorted(tmp_path.glob("*.pt"))), back([tmp_path / "b.pt"])
    assert (both.reward, alone.reward) == (reward, 0.25)
    assert "rewards that are no single number" not in both.notes


def test_routes_that_the_run_keeps_elsewhere_are_counted(tmp_path):
    class TensorRef:
        pass

    ref = TensorRef()
    ref.path, ref.shape = "/store/7", (9, 3, 2)
    with named(slime__utils__tensor_store=[TensorRef]):
        files = save(tmp_path, [rollout(made(steps=1)[0], 0) | {"rollout_routed_experts": ref}])
    (read_back,) = back(files)
    assert read_back.routes is None
    assert read_back.notes == {"`rollout_routed_experts` kept in another file, which is not read": 1}


def test_a_reward_that_is_no_number_is_counted(tmp_path):
    for reward in ({"score": 1.0}, 2**2000, "1.0"):
        (read_back,) = back(save(tmp_path, [rollout(made(steps=1)[0], 0) | {"reward": reward}]))
        assert read_back.reward is None
        assert read_back.notes["rewards that are no single number"] == 1


@pytest.mark.parametrize("name", [*rollout(made(steps=1)[0], 0), "rollout_top_p_token_offsets"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_value_that_refers_to_itself_over_and_over_is_never_walked_through(tmp_path, name, wrapped):
    value = [doubled()] * 3 if wrapped else doubled()
    files = save(tmp_path, [rollout(made(steps=1)[0], 0) | {name: value}], [trained(made(steps=1)[0], 0, 0)])
    assert "\n" not in refusal(lambda: back(files))
    assert "\n" not in refusal(lambda: back(save(tmp_path, [value] if wrapped else value)))


@pytest.mark.parametrize("name", trained(made(steps=1)[0], 0, 0))
def test_nor_is_one_in_a_train_file(tmp_path, name):
    sample = made(steps=1)[0]
    files = save(tmp_path, [rollout(sample, 0)], [trained(sample, 0, 0) | {name: doubled()}])
    assert "\n" not in refusal(lambda: back(files))
