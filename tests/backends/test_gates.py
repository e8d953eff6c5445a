"""Gate weights from both engines beside their experts, and rules by which experts give way, in three real steps."""

import json

import pytest

from firstorder.cli.main import run

ENGINES = [
    *("schedule.steps=3", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=1e-3", "task.kind=sums"),
    *("torchtitan.dtype=float32", "torchtitan.pack_length=64", "torchtitan.evaluate_every=0"),
    *("vllm.dtype=bfloat16", "vllm.max_prompt=40", "vllm.kv_cache_mib=16"),
]
RULES = {
    "total-recall": {"replayed": True, "replaced": False, "gates": True},
    "minirl-r3-margin": {"replayed": True, "replaced": True, "gates": False},
    "minirl-r3-condition": {"replayed": True, "replaced": True, "gates": False},
    "minirl-r2-n2 router_replay.gates=replayed": {"replayed": True, "replaced": False, "gates": True},
    "minirl-r2-n2 router_replay.condition=1.0": {"replayed": True, "replaced": True, "gates": False},
    "minirl-r2-n2 router_replay.margin=0.2": {"replayed": True, "replaced": True, "gates": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shape, write_model):
    return write_model(tmp_path_factory.mktemp("model"), shape)


def lines(out, name):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("named", RULES)
def test_three_steps_on_both_engines_show_that_a_rule_acted(named, folder, tmp_path, caplog):
    name, *more = named.split()
    words = [word for one in [*ENGINES, f"torchtitan.model={folder}", *more] for word in ("--set", one)]
    out = tmp_path / "run"
    with caplog.at_level("INFO", logger="firstorder"):
        assert run(["train", name, "--strict", "--backend", "torchtitan", *words, "--out", str(out)]) == 0
    receipts = lines(out, "receipts")
    assert len(receipts) == 3
    expected = RULES[named]
    for each in receipts:
        rows = [each[f"replay/rows_{part}"] for part in ("replayed", "replaced", "live")]
        assert sum(rows) == pytest.approx(1)
        assert (rows[0] > 0, rows[1] > 0, rows[2]) == (expected["replayed"], expected["replaced"], 0)
        assert each["inert/router_replay"] == 0
    assert any(each["replay/rows_changed"] > 0 for each in receipts)
    assert any("gives the router no gradient" in line for line in caplog.messages) == expected["gates"]
    mu = [each.get("route/gates_apart") for each in lines(out, "metrics")]
    assert all(x is None for x in mu) == (name != "total-recall")
    if name == "total-recall":
        assert all(0 < x < 0.05 for x in mu)  # bfloat16 in one engine, float32 in the other
    assert all(each["update/grad_norm"] > 0 for each in lines(out, "metrics"))
