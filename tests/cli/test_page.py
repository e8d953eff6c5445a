import base64
import csv
import hashlib
import html
import io
import json
import re
import zlib
from dataclasses import replace

import audits
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from firstorder.cli.report import kit
from firstorder.cli.report.audit import audit_page, audit_report, overview
from firstorder.cli.report.drawn import csv_of, is_drawn, plotted
from firstorder.cli.report.viewer import encoded, packed
from firstorder.core.audit.report import Verdict
from firstorder.core.audit.table import Estimate
from firstorder.core.errors import DataError

PAYLOAD = re.compile(r'<script type="application/json" id="view-data">(.*?)</script>', re.S)


@pytest.fixture(scope="module")
def files():
    return audit_report(audits.report())


@pytest.fixture(scope="module")
def page(files):
    return files["report.html"].decode()


def unpacked(part, beside=None):
    """As the script does it."""
    raw = zlib.decompress(base64.b64decode(part["data"]))
    gaps = np.frombuffer(raw, "u1" if part["bytes"] == 1 else "<u2").astype(np.int64)
    gaps = gaps.reshape(-1, part["layers"], part["k"])
    if beside is None:
        return gaps.cumsum(-1) - 1
    return np.where(gaps[..., :1] == 0, beside, gaps.cumsum(-1) - 2)


@given(st.text())
def test_text_is_harmless_and_keeps_its_words(value):
    shown = kit.text(value)
    assert not set("<>\"'") & set(shown)
    assert not kit.STEERING.search(shown)
    kept = html.unescape(shown)
    assert kit.STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", value) == kept
    shown.encode()


@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_data_ends_no_element_and_comes_back_as_it_was(value):
    whole = kit.data("some", value)
    start, end = '<script type="application/json" id="some">', "</script>"
    inside = whole.removeprefix(start).removesuffix(end)
    assert whole == start + inside + end
    assert not set("<>&\u2028\u2029") & set(inside)
    assert json.loads(inside) == value


def test_data_that_json_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        kit.data("some", [float("nan")])


def test_the_policy_names_the_style_and_the_script_and_opens_nothing_else(page):
    (policy,) = re.findall(r'Content-Security-Policy\' content="([^"]*)"', page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    known = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in (style, script)]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{known[0]}'",
        "script-src": f"'sha256-{known[1]}'",
    }
    assert " style=" not in page
    assert "script-src" not in kit.document("plain", [])


def test_the_verdict_comes_first_with_its_evidence_and_two_questions(page):
    report = audits.report()
    paragraph = report.verdict.paragraph.partition(":")[2] or report.verdict.paragraph
    words = [paragraph, *report.verdict.questions]
    places = [page.index(kit.text(word)) for word in words]
    headings = [page.index(f'<h2 id="{name}">') for name in ("findings", "by-position", "tables", "read", "responses")]
    assert [*places, *headings] == sorted([*places, *headings])
    assert headings[0] < page.rindex(kit.text(report.findings[0].evidence)) < headings[1]


def test_a_normal_dump_says_so():
    verdict = Verdict(fault=None, paragraph="Normal: D is what bf16 leaves.", questions=("a?", "b?"))
    page = audit_page(audits.report((), verdict=verdict, findings=()), {})
    assert "<strong>Normal:</strong> D is what bf16 leaves." in page
    assert "No fault was found." in page
    assert "<script" not in page


def test_links_of_the_page_lead_to_files_beside_it_or_places_in_it(files, page):
    targets = [html.unescape(t) for t in re.findall(r'(?:src|href)="([^"]*)"', page)]
    assert all(t.startswith(("data:", "#response-")) or t in files for t in targets)
    assert "#response-2" in targets  # where the finding was first seen


def test_tables_along_something_are_drawn_and_one_row_is_not(files):
    names = ("by-position", "by-decile", "by-step", "by-layer")
    assert {name for name in files if name.endswith((".png", ".svg"))} == {
        f"{name}.{suffix}" for name in names for suffix in ("png", "svg")
    }
    assert all(files[f"{name}.png"].startswith(b"\x89PNG") for name in names)
    assert {name for name in files if name.endswith(".csv")} == {f"{table.name}.csv" for table in audits.tables()}


def test_the_data_beside_a_figure_are_all_digits_of_the_table(files):
    table = audits.tables()[1]
    rows = list(csv.DictReader(io.StringIO(files["by-position.csv"].decode())))
    assert list(rows[0]) == ["position", "k3", "k3_low", "k3_high", "size", "size_low", "size_high", "tokens"]
    for row, known in zip(rows, table.rows, strict=True):
        estimate = known["k3"]
        assert [float(row[key]) for key in ("k3", "k3_low", "k3_high")] == [
            estimate.value,
            estimate.low,
            estimate.high,
        ]
        assert int(row["position"]) == known["position"]


def test_an_estimate_without_an_interval_has_none(page, files):
    assert ">0.0012 [0.0009, 0.0015]</td>" in page
    assert ">0.31</td>" in page
    assert b"ESS,0.31,,," in files["numbers.csv"]


@pytest.mark.filterwarnings("error")
def test_what_tables_lack_is_left_out():
    table = audits.tables()[1]
    some = replace(
        table,
        rows=(
            {"position": 1, "k3": Estimate(value=1.0), "size": None},
            {"position": 4, "k3": Estimate(value=float("nan")), "size": Estimate(value=2.0, low=1.0, high=3.0)},
            {"position": None, "k3": Estimate(value=2.0)},
        ),
    )
    files = audit_report(audits.report((), tables=(some, replace(table, name="by-turn", rows=()))))
    assert "by-position.svg" in files
    assert "by-turn.svg" not in files
    assert csv_of(replace(table, rows=())).count(b"\n") == 1


@given(
    arrays.arrays(np.int16, st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5)),
                  elements=st.integers(-1, 400)),
    st.randoms(use_true_random=False),
)  # fmt: skip
@settings(max_examples=60)
def test_packed_routes_come_back_in_the_order_of_their_ids(routes, rng):
    other = routes.copy()
    other[rng.randrange(len(other))] = rng.randrange(-1, 400)
    ours, theirs = routes.astype(np.int64), other.astype(np.int64)
    back = unpacked(packed(ours))
    assert (back == np.sort(ours, -1)).all()
    assert (unpacked(packed(theirs, ours), back) == np.sort(theirs, -1)).all()


def test_numbers_along_the_steps_are_drawn_without_intervals_too():
    table = audits.tables()[3]
    rows = tuple(
        {"step": step, "k3": 0.1 * step, "size": x, "tokens": 9}
        for step, x in enumerate((None, 1.0, float("inf"), 2.0))
    )
    signals = replace(table, name="signals", rows=rows)
    files = audit_report(audits.report((), tables=(signals,)))
    assert [column.key for column in plotted(signals)] == ["k3", "size"]
    assert b"k3 estimate of KL" in files["report.html"]
    assert "signals.svg" in files
    assert b"95 %" not in files["report.html"]


def test_what_does_not_vary_is_not_drawn():
    table = audits.tables()[3]
    same = replace(table, rows=tuple(row | {"size": Estimate(value=1.0, low=0.9, high=1.1)} for row in table.rows))
    assert [column.key for column in plotted(same)] == ["k3"]
    still = replace(same, rows=tuple(row | {"k3": Estimate(value=0.0)} for row in same.rows))
    assert not is_drawn(still)
    assert 'id="by-step"' not in audit_report(audits.report((), tables=(still,)))["report.html"].decode()


def test_an_overview_draws_what_the_tables_tell():
    assert [ax.get_title("left") for ax in overview(audits.report(())).axes] == ["k3 estimate of KL"] * 2
    with pytest.raises(DataError, match="no numbers by position"):
        overview(audits.report((), tables=audits.tables()[:1]))


@pytest.mark.filterwarnings("error")
def test_places_may_have_any_name():
    table = audits.tables()[2]
    rows = tuple(row | {"decile": name} for row, name in zip(table.rows, audits.ODD, strict=False))
    assert "by-decile.svg" in audit_report(audits.report((), tables=(replace(table, rows=rows),)))


def test_a_view_is_in_the_page_to_the_digits_of_a_float32(page):
    views = audits.report().views
    data = json.loads(PAYLOAD.search(page)[1])
    assert len(data) == len(views)
    for shown, view in zip(data, views, strict=True):
        assert shown["tokens"] == list(view.tokens)
        assert shown["mask"] == "".join(str(int(kept)) for kept in view.mask)
        np.testing.assert_allclose(shown["mu"], view.logp_mu, rtol=1e-7)
        routes = unpacked(shown["rollout"])
        assert (routes == np.sort(view.routes, -1)).all()
        assert (unpacked(shown["trainer"], routes) == np.sort(view.routes_old, -1)).all()
        sets = [[set(row) for row in token] for token in (*view.routes, *view.routes_old)]
        n = len(view.tokens)
        assert shown["flips"] == [sum(a != b for a, b in zip(sets[i], sets[n + i], strict=True)) for i in range(n)]


def test_what_is_no_number_says_which():
    shown = encoded(audits.broken())
    assert (shown["old"][3], shown["old"][5], shown["old"][8]) == (None, "-inf", 0.25)


def test_views_that_lack_columns_are_written():
    bare = audits.view(logp_mu=None, logp_old=None, routes=None, routes_old=None)
    shown = encoded(bare)
    assert [shown[key] for key in ("mu", "old", "flips", "rollout", "trainer", "texts")] == [None] * 6
    wider = audits.view(routes_old=audits.view(layers=7).routes)  # all layers beside MoE layers: nothing to compare
    shown = encoded(wider)
    assert shown["flips"] is None
    assert (unpacked(shown["trainer"]) == np.sort(wider.routes_old, -1)).all()
