"""What a reader acts on: the verdict on top of the page, marks and means on the curves, all digits in the data."""

import csv
import json
import re

import numpy as np
import pytest
from run_folders import COLLAPSES, LEARNS, made

from firstorder.cli.main import run
from firstorder.cli.report import claimed
from firstorder.cli.report.figures import COLOURS
from firstorder.cli.report.panels import TOGETHER
from firstorder.cli.report.remedies import UNBOUNDED
from firstorder.cli.report.rows import Number, csv_of, shown
from firstorder.core.runs.windows import width
from firstorder.sim.claims import settle
from firstorder.sim.claims.claim import Outcome


def reported(out, *folders):
    assert run(["report", *map(str, folders), "--out", str(out)]) == 0
    return (out / "report.html").read_text(encoding="utf-8")


def table(file):
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    runs = (
        made(folder / "falls", COLLAPSES),
        made(folder / "learns", LEARNS, recipe="minirl-r3", ratio="theta/old", seed=7),
    )
    reported(folder / "out", *runs)
    return folder / "out"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A run long enough for windows, of two members."""
    folder, rng = tmp_path_factory.mktemp("noisy"), np.random.default_rng(0)
    values = rng.uniform(size=(40, 2)).tolist()
    reported(folder / "out", made(folder / "run", [[0.1, 0.2]] * 40, kl=values, reward=values))
    return folder / "out", np.array(values)


def test_a_page_of_one_run_begins_with_its_verdict(tmp_path):
    page = reported(tmp_path / "out", made(tmp_path / "run", COLLAPSES, seed=5))
    body = page[page.index("</h1>") + len("</h1>") :].lstrip()
    assert body.startswith('<div class="verdict fault"><p><strong>Collapsed, at step 4</strong></p>')
    box = body[: body.index("</div>")]
    assert "exact/j_pi: 0.1 at step 1, 0.2 at step 6, best 0.9 at step 3" in box
    assert f"<code>{UNBOUNDED.remedy}</code>, against {UNBOUNDED.cause}" in box
    assert '<a href="#remedies">' in box
    assert '<h2 id="remedies">' in page
    assert "docs/collapse.md" in page
    assert body.index("seeds 5, 6 steps") < body.index('<h2 id="summary">') < body.index("<figure>")


def test_a_run_that_goes_on_says_how_far_it_is_and_a_short_one_that_no_collapse_can_be_seen(tmp_path):
    page = reported(tmp_path / "out", made(tmp_path / "run", LEARNS[:2], planned=6))
    assert '<div class="verdict"><p><strong>Learned, 2 of 6 steps so far</strong></p>' in page
    assert "too few evaluations to see a collapse" in page
    assert "Nothing to change." in page


def test_several_runs_have_a_row_each_then_what_differs_and_the_seeds(pair):
    page = (pair / "report.html").read_text(encoding="utf-8")
    assert "<strong>1 of 2 collapsed (falls); 1 of 2 learned</strong>" in page
    row = "<td class='number'>{}</td>"
    falls = "Collapsed, at step 4", "0.1 at 1", "0.2 at 6", "0.9 at 3", UNBOUNDED.remedy
    assert '<th scope="row">falls</th>' + "".join(map(row.format, falls)) in page
    assert "first alarm" not in page
    ratio = '<th scope="row"><code>ratio.of</code></th>' + row.format("theta/mu") + row.format("theta/old")
    assert ratio in page
    seeds = '<th scope="row"><code>seeds</code></th>' + row.format(3) + row.format(7)
    assert page.index("Collapsed, at step 4") < page.index(seeds) < page.index("<figure>")
    assert "<code>sim.seed</code>" not in page


def test_a_collapse_is_a_line_with_a_label_on_every_curve_of_its_run_alone(pair):
    for name in ("reward", "receipts"):
        svg = (pair / f"{name}.svg").read_text()
        panels = len({row["quantity"] for row in table(pair / f"{name}.csv")})
        assert svg.count('id="collapse falls"') == panels
        assert svg.count("<!-- collapse -->") == panels
        assert 'id="collapse learns"' not in svg


def test_the_label_of_a_collapse_says_in_how_many_members(tmp_path):
    two = [[a, b] for a, b in zip(COLLAPSES, LEARNS, strict=True)]
    page = reported(tmp_path / "out", made(tmp_path / "run", two))
    assert "Collapsed in 1 of 2 members, the first at step 4" in page
    assert "<!-- collapse, 1 of 2 -->" in (tmp_path / "out/reward.svg").read_text()


def test_what_is_sampled_is_drawn_as_the_mean_of_a_window_before_its_own_values(noisy):
    out, values = noisy
    window = width(40)
    assert window > 1
    for name, quantity in (("kl", "kl"), ("reward", "reward")):
        rows = [row for row in table(out / f"{name}.csv") if row["quantity"] == quantity]
        for i, row in enumerate(rows):
            assert row["window"] == str(window)
            assert float(row["mean"]) == pytest.approx(values[max(0, i + 1 - window) : i + 1].mean(), rel=1e-12)
            assert float(row["value"]) == pytest.approx(values[i].mean(), rel=1e-12)
        svg = (out / f"{name}.svg").read_text()
        assert f'id="each step {quantity}"' in svg
        assert f"<!-- mean of {window} steps -->" in svg
    (last,) = table(out / "summary.csv")
    assert float(last["final kl (k1) [nats/token]"]) == pytest.approx(values[-window:].mean(), rel=1e-12)


def test_what_is_exact_is_drawn_as_it_is(noisy):
    out, _ = noisy
    rows = [row for row in table(out / "reward.csv") if row["quantity"] == "exact/j_pi"]
    assert all((row["window"], row["mean"]) == ("1", row["value"]) for row in rows)
    assert 'id="each step exact/j_pi"' not in (out / "reward.svg").read_text()


def test_of_many_runs_each_has_an_axes_with_the_others_grey_behind(tmp_path):
    count = TOGETHER + 1
    folders = [made(tmp_path / f"run{i}", LEARNS if i else COLLAPSES, kl=[0.1] * 6) for i in range(count)]
    page = reported(tmp_path / "out", *folders)
    assert "<h1>Training report: 7 runs</h1>" in page
    svg = (tmp_path / "out/reward.svg").read_text()
    assert svg.count('id="others"') == 2 * count
    assert not (tmp_path / "out/kl.svg").exists()
    assert "the same number in all runs throughout has no figure" in page
    assert svg.count('id="collapse run0"') == 2
    assert COLOURS[0].lower() in svg
    assert not any(colour.lower() in svg for colour in COLOURS[1:-1])


def test_a_phone_gets_a_figure_of_its_own(pair):
    page = (pair / "report.html").read_text(encoding="utf-8")
    assert page.count("<source media=") == 1  # the reward; a figure of one axes fits as it is
    assert page.count("<img ") == 2


def test_numbers_survive_the_way_through_the_data(tmp_path):
    awkward = [0.1 + 0.2, 1 / 3, 1e-17, 1 - 2**-53, 5e-324, 123456789.123456789]
    reported(tmp_path / "out", made(tmp_path / "run", LEARNS, kl=awkward))
    rows = table(tmp_path / "out/kl.csv")
    assert [float(row["value"]) for row in rows] == awkward
    assert [float(row["each"]) for row in rows] == awkward
    (last,) = table(tmp_path / "out/summary.csv")
    assert float(last["final kl (k1) [nats/token]"]) == awkward[-1]


def test_a_table_is_rounded_for_people_alone():
    rows = [{"run": "a", "j": Number(value=1 / 3, low=0.1, high=2 / 3, step=4, late=True)}, {"run": "b", "j": "none"}]
    assert [row["j"] for row in shown(rows)] == ["0.3333 [0.1, 0.6667] at step 4", "none"]
    lines = csv_of(rows).decode().splitlines()
    assert lines == ["run,j,j low,j high,j step", f"a,{1 / 3!r},0.1,{2 / 3!r},4", "b,none,,,"]
    assert csv_of([{"x": 2 / 3}]).decode() == f"x\n{2 / 3!r}\n"


def claim(name, verdict, **measured):
    words = {"statement": f"What {name} says.", "rule": "a rule", "headline": f"measured for {name}"}
    return {"id": name, "verdict": verdict, "measured": measured, **words}


@pytest.fixture
def claims(tmp_path):
    folder = tmp_path / "claims"
    for cell in ("wide-n1-minirl", "wide-n1-minirl-r3", "wide-n2-minirl"):
        made(folder / "cells" / cell, LEARNS, recipe=cell[len("wide-n1-") :], kl=LEARNS)
    (folder / "claims.toml").write_text("[claims]\n")
    return folder


def test_each_claim_has_its_verdict_beside_its_figure(claims, tmp_path):
    where = {
        "wide-n1": {"holds": True, "recipes": {"minirl": {}}},
        "wide-n2": {"holds": None, "recipes": {"minirl": {}}},
    }
    settled = claim("training-made-up", "reproduced", conditions=where), claim("training-discrepancy", "not reproduced")
    claimed.keep(claims, settled)
    page = reported(tmp_path / "out", claims)
    assert "<strong>1 of 2 reproduced; 1 of 2 not reproduced</strong>" in page
    own = page[page.index('<h2 id="training-made-up">') : page.index('<h2 id="exact-j_pi">')]
    assert own.index("<strong>reproduced</strong>: measured for training-made-up") < own.index("<figure>")
    rows = table(tmp_path / "out/training-made-up.csv")
    assert {row["run"] for row in rows} == {"wide-n1-minirl", "wide-n2-minirl"}
    svg = (tmp_path / "out/training-made-up.svg").read_text()
    assert "<!-- wide-n1: holds -->" in svg
    assert "<!-- wide-n2: open -->" in svg
    kl = page[page.index('<h2 id="kl">') :]
    assert kl.index("training-discrepancy: not reproduced; measured for training-discrepancy") < kl.index("<figure>")
    links = re.findall(r'href="#([^"]*)"', page)
    assert links
    assert all(f'id="{link}"' in page for link in links)


def test_claims_that_are_not_settled_yet_are_said_to_be_so(claims, tmp_path):
    assert "No claim is settled here yet: firstorder validate --training" in reported(tmp_path / "out", claims)


def test_a_claim_that_is_settled_again_replaces_itself(claims):
    claimed.keep(claims, [claim("a", "inconclusive"), claim("b", "reproduced")])
    claimed.keep(claims, [claim("a", "reproduced")])
    assert {each.id: each.verdict for each in claimed.read(claims)} == {"a": "reproduced", "b": "reproduced"}


def test_a_damaged_file_of_verdicts_is_refused_in_one_line(claims, tmp_path, capsys):
    for text in ('{"claims": [', json.dumps({"claims": [{"id": "a"}]}), "[]"):
        (claims / claimed.NAME).write_text(text)
        assert run(["report", str(claims), "--out", str(tmp_path / "out")]) == 2
        assert "claims.json is damaged; remove it" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_validate_keeps_the_verdicts_in_the_folder_of_its_runs(tmp_path, monkeypatch):
    def settled(chosen, budget):
        outcome = Outcome(verdict="inconclusive", headline="made up", measured={})
        return [settle.Settled(claim=each, outcome=outcome, seconds=0.0) for each in chosen]

    monkeypatch.setattr(settle, "here", settled)
    for name in ("training-stale", "training-no-is"):
        assert run(["validate", "--training", "--quick", "--only", name, "--out", str(tmp_path)]) == 0
    assert {each.id: each.headline for each in claimed.read(tmp_path)} == dict.fromkeys(
        ("training-stale", "training-no-is"), "made up"
    )
