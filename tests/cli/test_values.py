"""Values that make no sense: each is refused in one line that says why."""

import math

import fuzz
import pytest

from firstorder.cli.main import run
from firstorder.core import memory
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.sim.config import Sim

NUMERIC = {key: f for key, f in fuzz.SETTINGS.items() if {int, float} & set(fuzz.kinds(f.annotation))}
PAIRS = {key: f for key, f in fuzz.SETTINGS.items() if fuzz.items(f.annotation) is float}
RANGED = NUMERIC | PAIRS
REFUSED = {
    "optimizer.betas=[1.5,2]": "optimizer.betas.0: must lie in [0, 1), got 1.5; a moment is a decaying mean",
    "optimizer.betas=[true,0.9]": "optimizer.betas.0: input should be a valid number, got True; a bool is no number",
    "optimizer.lr=1e30": "optimizer.lr: must lie in (0, 100], got 1e+30; AdamW moves a weight by about lr",
    "sim.sharpness=1e300": "sim.sharpness: must lie in (0, 100], got 1e+300",
    "sim.temperature=1e-300": "sim.temperature: must lie in [0.01, 100], got 1e-300",
    "clip.high=true": "clip.high: input should be a valid number, got True; a bool is no number",
    'sim.vocab="4"': "sim.vocab: input should be a valid integer, got '4'; write it without quotes",
    "clip.high=.1": "clip.high: input should be a valid number, got '.1'; write 0.1",
    "clip.high=wide": "clip.high: input should be a valid number, got 'wide'\n",
    "sim.vocab=4.0": "sim.vocab: input should be a valid integer, got 4.0",
    "sim.seed=" + "9" * 20: "sim.seed: must lie in [0, 9223372036854775807], got 99999999999999999999",
    "sim.seed=" + "9" * 5000: "(5,002 characters) has too many digits",
    "sim.seed=9223372036854775807": None,
    "clip.high=" + "[" * 5000: "are nested too deeply",
    "optimizer.max_grad_norm=nan": "optimizer.max_grad_norm: must lie in (0, inf], got nan",
    "about.name=../../x": "a name is 1 to 80 letters, digits, dots, hyphens and underscores",
    "about.name=" + "x" * 300: "a name is 1 to 80 letters",
    "sim.experts=40000": "sim.experts: must lie in [2, 32767], got 40000; routes are kept in 16 bits",
    "sim.horizon=10000000000000": "sim.horizon: must lie in [1, 1048576]",
    "sim.width=60000": "parameters would take about",
}


@pytest.mark.parametrize("assignment", REFUSED, ids=lambda text: text[:30])
def test_a_value_that_makes_no_sense_is_refused_with_its_reason(assignment, capsys, monkeypatch):
    from firstorder.sim.exact import measure

    monkeypatch.setattr(measure, "_scene", fuzz.work)
    monkeypatch.setattr(memory, "available", lambda: 1 << 34)
    if REFUSED[assignment] is None:
        with pytest.raises(fuzz.Worked):
            run(["measure", "minirl", "--set", assignment])
        return
    assert run(["measure", "minirl", "--set", assignment]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert REFUSED[assignment] in err


def test_there_are_numbers_of_every_section():
    assert {key.partition(".")[0] for key in RANGED} >= {
        "clip",
        "optimizer",
        "schedule",
        "sim",
        "torchtitan",
        "vllm",
        "task",
    }
    assert set(PAIRS) == {
        "optimizer.betas",
        "critic.betas",
        "correction.positive",
        "correction.negative",
        "clip.temperature",
    }


@pytest.mark.parametrize("key", RANGED)
def test_every_number_has_a_range_and_refuses_what_lies_beyond_it_with_the_reason(key):
    field = RANGED[key]
    notes = field.json_schema_extra
    low, high = (float(end) for end in notes["interval"][1:-1].split(","))
    assert low < high
    for beyond in (low - 1, high * 2 + 1):
        if math.isfinite(beyond):
            number = int(beyond) if int in fuzz.kinds(field.annotation) else beyond
            value = (number, number) if key in PAIRS else number
            with pytest.raises(ConfigError) as caught:
                fuzz.built(key, value)
            assert f"must lie in {notes['interval']}, got {number}" in str(caught.value)
            assert str(caught.value).endswith(f"; {notes['why']}")


@pytest.mark.parametrize("key", NUMERIC)
@pytest.mark.parametrize("value", [True, "1"])
def test_neither_a_bool_nor_a_text_is_a_number(key, value):
    with pytest.raises(ConfigError, match=r"a bool is no number|write it without quotes"):
        fuzz.built(key, value)


def test_a_whole_number_is_a_real_one_and_an_array_a_tuple():
    assert Recipe.model_validate({"optimizer": {"lr": 1, "betas": [0, 0.5]}}).optimizer.betas == (0.0, 0.5)
    assert isinstance(Sim.model_validate({"sharpness": 2}).sharpness, float)
