import json
import re
import webbrowser
from html.parser import HTMLParser
from itertools import product

import pytest

import firstorder as fo
from firstorder.cli.api import gridded, portrayed
from firstorder.cli.main import run
from firstorder.cli.report import explorer
from firstorder.core.errors import DataError
from firstorder.sim.trials import atlas as maps

DIGITS = {"rel": 5e-5}  # the data hold five significant digits, so that rounding moves a number by half of the fifth
ANEW = {"rel": 1e-4}  # both are rounded: by one of the fifth


@pytest.fixture(scope="module")
def data():
    return explorer.read()


class Loads(HTMLParser):
    """What a page would fetch, and the data that it holds."""

    def __init__(self):
        super().__init__()
        self.fetched, self.data, self.inside = [], "", False

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.fetched += [given[name] for name in ("src", "href", "srcset", "data", "poster") if name in given]
        self.inside = given.get("id") == "explorer-data"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, text):
        if self.inside:
            self.data += text


def place(data, **at):
    """Where a regime lies in the columns."""
    axes = data["decision"]["axes"]
    return [*product(*axes.values())].index(tuple(at[name] for name in axes))


def shown(data, name, at):
    column = data["decision"]["columns"][name]
    return column["values"][column["at"][at]]


def test_the_command_writes_one_file_and_says_what_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["explore"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("explorer.html: open it in a browser")
    assert [file.name for file in tmp_path.iterdir()] == ["explorer.html"]
    assert (tmp_path / "explorer.html").read_text(encoding="utf-8") == explorer.page()


def test_open_shows_the_file_that_was_written(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(asked.append(url)) or True)
    file = tmp_path / "a page.html"
    assert run(["explore", "--out", str(file), "--open"]) == 0
    assert asked == [file.as_uri()]
    assert capsys.readouterr().out.startswith(f"{file}: opened in the browser. ")
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert not fo.explore(file, show=True).shown


@pytest.mark.parametrize("name", ["no-such-folder/page.html", "folder"])
def test_a_place_that_takes_no_file_is_refused_in_one_line(tmp_path, name, capsys):
    (tmp_path / "folder").mkdir()
    assert run(["explore", "--out", str(tmp_path / name)]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert re.search(rf"cannot write .*{name}: .*; give a file", said.err)
    assert [file.name for file in tmp_path.rglob("*")] == ["folder"]


def test_the_page_fetches_nothing_and_holds_the_data(data):
    text = explorer.page()
    page = Loads()
    page.feed(text)
    assert page.fetched == []
    assert json.loads(page.data) == data
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(", text)
    for name in ("uplot.js", "uplot.css"):
        assert "The MIT License" in explorer.kit.static(name)
        assert explorer.kit.static(name).startswith("/*! uPlot 1.6.32")


def test_the_data_are_small_enough_to_be_sent():
    assert explorer.SHIPPED.stat().st_size < 1.2e6


REGIMES = [
    {"kl": 1.5e-3, "flips": 0.1, "n": 4, "horizon": 8192, "step": 1e-4},
    {"kl": 1.5e-3, "flips": 0.1, "n": 1, "horizon": 32768, "step": 1e-4},
    {"kl": 7e-4, "flips": 0.05, "n": 8, "horizon": 2048, "step": 1e-4},
    {"kl": 5e-3, "flips": 0.2, "n": 8, "horizon": 8192, "step": 1e-3},
    {"kl": 4e-2, "flips": 0.005, "n": 2, "horizon": 512, "step": 1e-3},
]


@pytest.mark.parametrize("at", REGIMES, ids=lambda at: " ".join(map(str, at.values())))
def test_a_regime_of_the_grid_is_what_recommend_answers(data, at):
    found, where = fo.recommend(**at), place(data, **at)
    names = [one["name"] for one in data["decision"]["options"]]
    assert names[shown(data, "chosen", where)] == found.advice["option"]
    assert f"recommended: {shown(data, 'said', where)}" == found.advice["said"]
    assert shown(data, "command", where) == found.advice["command"]
    assert shown(data, "paper", where) == found.paper
    assert shown(data, "training", where) == [f"{one['found']} ({one['source']})" for one in found.training]
    rows, row_of = shown(data, "rows", where), shown(data, "row_of", where)
    for one in found.options:
        held = dict(zip(data["decision"]["numbers"], rows[row_of[names.index(one["option"])]], strict=True))
        assert held == pytest.approx({name: one[name] for name in held}, **DIGITS)
    sure = shown(data, "sure", where)
    assert sure["outside"] == pytest.approx(found.sure["outside"], **DIGITS)
    assert sure["agree"] == pytest.approx(found.sure["agree"], **DIGITS)
    assert sure["nearest"] == pytest.approx([found.sure["nearest"][name] for name in gridded.NEAREST], **DIGITS)
    assert sure["around"] != any("no cell around it" in line for line in found.sure["said"])
    changes = {
        axis: {side: (pytest.approx(there["at"], **DIGITS), there["advice"]) for side, there in sides.items()}
        for axis, sides in found.changes.items()
    }
    held = shown(data, "changes", where)
    assert {a: {s: (x, names[i]) for s, (x, i) in sides.items()} for a, sides in held.items()} == changes


def test_the_advice_is_among_the_tied_and_the_tied_among_the_allowed(data):
    for where in range(len(data["decision"]["columns"]["chosen"]["at"])):
        tied = shown(data, "tied", where)
        assert shown(data, "chosen", where) in tied
        assert set(tied) <= set(shown(data, "allowed", where))


def test_a_regime_is_made_anew_as_it_is_stored(data):
    at = REGIMES[2]
    made = gridded.regime(maps.read(), gridded.point_of({**gridded.DEFAULTS, **at}))
    stored = {name: shown(data, name, place(data, **at)) for name in made}
    assert json.loads(json.dumps(made)) == stored
    assert {name: list(values) for name, values in gridded.AXES.items()} == data["decision"]["axes"]


@pytest.mark.parametrize(("noise", "stale"), [(0.4, 0), (0.1, 3)])
def test_the_nodes_are_made_anew_as_they_are_stored(data, noise, stale):
    policy = data["policy"]
    where = policy["noises"].index(noise) * len(policy["staleness"]) + policy["staleness"].index(stale)
    for made, stored in zip(portrayed.nodes(noise, stale), policy["nodes"][where], strict=True):
        assert {name: made[name] for name in ("tokens", "rewards", "experts", "flipped")} == {
            name: stored[name] for name in ("tokens", "rewards", "experts", "flipped")
        }
        assert made["reached"] == pytest.approx(stored["reached"], **ANEW)
        assert made["logp"].keys() == stored["logp"].keys()
        for name, values in made["logp"].items():
            assert values == pytest.approx(stored["logp"][name], **ANEW)


def test_the_experts_of_the_policy_flip_from_the_third_noise_on(data):
    flips = [sum(sum(node["flipped"]) for node in nodes) for nodes in data["policy"]["nodes"]]
    assert flips[:4] == [0] * 4
    assert all(flips[4:])


@pytest.mark.parametrize(
    ("noise", "stale", "method", "replay"),
    [(0.4, 0, "minirl", "R3"), (0.8, 3, "gspo", "R2"), (0.05, 3, "minirl-no-is", "disabled")],
)
def test_a_measurement_is_made_anew_as_it_is_stored(data, noise, stale, method, replay):
    policy = data["policy"]
    where = policy["noises"].index(noise) * len(policy["staleness"]) + policy["staleness"].index(stale)
    row = policy["methods"].index(method) * len(policy["replays"]) + policy["replays"].index(replay)
    *numbers, inert = policy["measured"][where][row]
    *made, idle = portrayed.measured(noise, stale, method, replay)
    assert made == pytest.approx(numbers, **ANEW)
    assert idle == inert


def broken(**changes):
    held = json.loads(explorer.SHIPPED.read_text(encoding="utf-8"))
    for path, value in changes.items():
        *outer, last = path.split("__")
        inner = held
        for name in outer:
            inner = inner[name]
        inner[last] = value
    return json.dumps(held)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "holds no data of the explorer"),
        ("[]", "holds no data of the explorer"),
        (broken(schema="firstorder.explorer/0"), "schema must be firstorder.explorer/1"),
        (broken(decision__options=[]), "options are not those of this version"),
        (broken(decision__columns__tied={"values": [], "at": [0]}), "column tied does not fit a grid of 2,304 regimes"),
        (broken(policy__nodes=[]), "the policy is not held at 10 places"),
    ],
    ids=["no JSON", "no object", "schema", "options", "column", "nodes"],
)
def test_data_that_are_not_whole_are_refused_in_one_line(text, said):
    with pytest.raises(DataError, match=re.escape(said)) as raised:
        explorer.parse(text, "a file")
    assert "\n" not in str(raised.value)
