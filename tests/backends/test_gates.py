"""Gate weights from both engines beside their experts, and rules by which experts give way, in three real steps."""

import json

import pytest

from firstorder.cli.main import run

ENGINES = [
    "schedule.minibatches=2",
    *("schedule.steps=3", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=1e-3", "task.kind=sums"),
    *("torchtitan.dtype=float32", "torchtitan.pack_length=64", "torchtitan.evaluate_every=0"),
    *("vllm.dtype=bfloat16", "vllm.max_prompt=40", "vllm.kv_cache_mib=16"),
]
APART = "vllm.kv_cache_dtype=fp8_e5m2"  # engines whose routes differ at many rows, some of them by wide margins
MOVED = "optimizer.lr=0.02"  # far enough within a step that a router's choice at the start of it is no longer close
RULES = {
    "total-recall": {"gates": True},
    f"minirl-r3-margin router_replay.margin=0.02 {APART}": {"replaced": True},
    f"minirl-r3-condition router_replay.condition=0.9 {APART}": {"replaced": True},
    f"minirl-r2-n2 router_replay.gates=replayed {MOVED}": {"gates": True},
    f"minirl-r2-n2 router_replay.condition=0.9 {MOVED}": {"replaced": True},
    f"minirl-r2-n2 router_replay.margin=0.02 {MOVED}": {"replaced": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shape, write_model):
    return write_model(tmp_path_factory.mktemp("model"), shape)


def lines(out, name):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("named", RULES)
def test_three_steps_on_both_engines_show_that_a_rule_acted(named, folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sums, "verify", lambda question, response: float(len(response) % 2))  # some reward, some none
    (name, *more), expected = named.split(), {"replaced": False, "gates": False} | RULES[named]
    words = [word for one in [*ENGINES, f"torchtitan.model={folder}", *more] for word in ("--set", one)]
    out = tmp_path / "run"
    assert run(["train", name, "--strict", "--backend", "torchtitan", *words, "--out", str(out)]) == 0
    assert ("give the router no gradient" in capfd.readouterr().err) == expected["gates"]
    receipts, metrics = lines(out, "receipts"), lines(out, "metrics")
    assert len(receipts) == 3
    for each in receipts:
        replayed, replaced, live = (each[f"replay/rows_{part}"] for part in ("replayed", "replaced", "live"))
        assert (replayed + replaced, live) == (pytest.approx(1), 0)
        assert replayed > 0
        assert (replaced > 0) == expected["replaced"]
        assert each["replay/rows_changed"] > 0
        assert each["inert/router_replay"] == 0
    assert all(each["update/grad_norm"] > 0 for each in metrics)
    apart = [each.get("route/gates_apart") for each in metrics]
    if name == "total-recall":
        assert all(0 < x < 0.05 for x in apart)  # one engine in bfloat16, the other in float32
    else:
        assert apart == [None] * 3
