import time
from dataclasses import replace

import audits
import pytest
from driving import LEGIBLE, all_of, one, opened, press, read, requests, waited
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from firstorder.cli.report.audit import audit_page, audit_report
from firstorder.core.audit.report import Report

LEVELS = (0.03, 0.1, 0.3, 1.0)


@pytest.fixture(scope="module")
def report():
    return audits.report()


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    for name, content in audit_report(report).items():
        (folder / name).write_bytes(content)
    return folder / "report.html"


def written(folder, views):
    file = folder / "page.html"
    file.write_text(audit_page(audits.report(views, tables=()), {}), encoding="utf-8")
    return file


def rows(browser):
    return [int(row.get_attribute("data-number")) for row in all_of(browser, "#view-list tbody tr")]


def column(browser, title):
    titles = [head.text.strip(" ▲▼") for head in all_of(browser, "#view-list thead th")]
    place = titles.index(title) + 1
    cells = f"document.querySelectorAll('#view-list tbody tr > :nth-child({place})')"
    return read(browser, f"[...{cells}].map(cell => cell.textContent)")


def at(browser):
    return int(one(browser, ".t.at").get_attribute("data-i"))


def facts(browser):
    names, values = (all_of(browser, f"#view-detail {tag}") for tag in ("dt", "dd"))
    return {name.text: value.text for name, value in zip(names, values, strict=True)}


def apart(view, i):
    return view.logp_old[i] - view.logp_mu[i]


def flips(view, i):
    return sum(set(a) != set(b) for a, b in zip(view.routes[i], view.routes_old[i], strict=True))


def test_a_page_from_a_file_loads_nothing_else_and_has_no_errors(browser, page):
    opened(browser, page)
    waited(browser, "#view-routes")
    assert browser.get_log("browser") == []
    assert list(requests(browser)) == [page.as_uri()]
    assert "Audit of a dump" in one(browser, "h1").text
    assert all(read(browser, "[...document.images].map(i => i.complete && i.naturalWidth > 0)"))


def test_nothing_but_the_pages_own_script_may_run_and_nothing_may_be_fetched(browser, page):
    opened(browser, page)
    browser.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hurt = 1\">');"
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hurt = 2'}));"
        "fetch('https://example.com/').catch(() => { window.refused = true; });"
    )
    WebDriverWait(browser, 5).until(lambda b: read(b, "window.refused"))
    assert read(browser, "window.hurt ?? null") is None
    assert [url for url, refused in requests(browser).items() if not refused] == [page.as_uri()]
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert all("Content Security Policy" in message for message in refused)
    assert len(refused) >= 3


def test_every_token_has_the_colour_and_the_line_of_its_d(browser, page, report):
    opened(browser, page, "#response-1")
    view = report.views[0]
    looks = [token.get_attribute("class").split()[1:] for token in all_of(browser, "#view-tokens .t")]
    for i, look in enumerate(looks):
        d = apart(view, i)
        depth = sum(abs(d) >= level for level in LEVELS)
        expected = [("m", "p")[d > 0], f"d{depth}"] if depth else ["near"]
        assert look[: len(expected)] == (expected if view.mask[i] else ["off"]), i
    style = "[...document.querySelectorAll('#view-tokens .t')].map(t => getComputedStyle(t)).map(s => "
    shown = read(browser, f"{style}[s.backgroundColor, s.borderBottomStyle])")
    colours = {tuple(look[:2]): tuple(s) for look, s in zip(looks, shown, strict=True) if look[0] in "pm"}
    assert {line for (sign, _), (_, line) in colours.items() if sign == "p"} == {"solid"}
    assert {line for (sign, _), (_, line) in colours.items() if sign == "m"} == {"dotted"}
    assert len({colour for colour, _ in colours.values()}) == len(colours)


def test_hovering_shows_the_numbers_and_the_routes_of_both_engines(browser, page, report):
    opened(browser, page, "#response-1")
    waited(browser, "#view-routes")
    view = report.views[0]
    i = next(i for i in range(10, 80) if view.mask[i] and flips(view, i))
    ActionChains(browser).move_to_element(all_of(browser, "#view-tokens .t")[i]).perform()
    WebDriverWait(browser, 5).until(lambda b: facts(b)["position"] == str(view.first + i))
    said = {name: value.replace("−", "-").split()[0] for name, value in facts(browser).items()}
    assert float(said["log μ, rollout"]) == pytest.approx(view.logp_mu[i], rel=1e-5)
    assert float(said["log π_old, trainer"]) == pytest.approx(view.logp_old[i], rel=1e-5)
    assert float(said["D"]) == pytest.approx(apart(view, i), rel=1e-3)
    assert said["token"] == str(view.tokens[i])
    shown = read(
        browser,
        "[...document.querySelectorAll('#view-routes tbody tr')].map(r => "
        "[...r.querySelectorAll('td')].map(d => [Number(d.textContent), d.classList.contains('other')]))",
    )
    for layer, cells in enumerate(shown):
        ours, theirs = sorted(view.routes[i][layer]), sorted(view.routes_old[i][layer])
        assert [expert for expert, _ in cells] == [*ours, *theirs]
        expected = [x not in theirs for x in ours] + [x not in ours for x in theirs]
        assert [other for _, other in cells] == expected
    assert any(other for cells in shown for _, other in cells)


def test_leaving_the_tokens_shows_the_chosen_one_again(browser, page):
    opened(browser, page, "#response-1-token-45")
    waited(browser, "#view-routes")
    ActionChains(browser).move_to_element(all_of(browser, "#view-tokens .t")[20]).perform()
    assert facts(browser)["position"] == "60"
    ActionChains(browser).move_to_element(one(browser, "#view-shown")).perform()
    assert facts(browser)["position"] == "45"


def test_the_keyboard_moves_between_tokens_worst_tokens_and_responses(browser, page, report):
    opened(browser, page)
    view = report.views[0]
    worst = sorted(
        (i for i in range(len(view.tokens)) if view.mask[i]), key=lambda i: abs(apart(view, i)), reverse=True
    )
    assert at(browser) == worst[0]
    press(browser, "n")
    assert at(browser) == worst[1]
    assert read(browser, "location.hash") == f"#response-1-token-{view.first + worst[1]}"
    press(browser, "n", "p", "p", "p")
    assert at(browser) == worst[0]
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert at(browser) == worst[0] + 1
    assert read(browser, "document.activeElement.dataset.i") == str(worst[0] + 1)
    press(browser, Keys.HOME, Keys.ARROW_LEFT)
    assert at(browser) == 0
    press(browser, Keys.END, Keys.ARROW_RIGHT)
    assert at(browser) == len(view.tokens) - 1
    press(browser, "j", "j", "k")
    assert one(browser, "#view-shown").text == f"Response 2: {report.views[1].source}"


def test_every_control_is_reached_with_the_tab_key(browser, page):
    opened(browser, page)
    reached = set()
    for _ in range(60):
        press(browser, Keys.TAB)
        reached.add(read(browser, "document.activeElement.id || document.activeElement.className.split(' ')[0]"))
        if read(browser, "document.activeElement.matches('.t')"):
            break
    assert {"view-step", "view-why", "wide", "t"} <= reached
    press(browser, Keys.ARROW_RIGHT)
    assert read(browser, "document.activeElement.matches('.t.at')")


def test_tokens_that_no_ratio_can_be_made_of_come_first_and_are_marked(browser, page, report):
    opened(browser, page, f"#response-{len(report.views)}")
    assert at(browser) == 3
    assert [int(t.get_attribute("data-i")) for t in all_of(browser, "#view-tokens .bad")] == [3, 5, 8]
    assert facts(browser)["log π_old, trainer"] == "no number"
    press(browser, "n")
    assert facts(browser)["log π_old, trainer"] == "-inf"
    assert column(browser, "unusable")[-1] == "3"


def test_a_link_opens_its_response_and_token(browser, page, report):
    opened(browser, page, "#response-3-token-47")
    assert one(browser, "#view-shown").text == f"Response 3: {report.views[2].source}"
    assert at(browser) == 7
    assert read(browser, "document.activeElement === document.querySelector('.t.at')")
    browser.execute_script("location.hash = '#response-2-token-50'")
    WebDriverWait(browser, 5).until(lambda b: at(b) == 10)
    browser.execute_script("location.hash = '#response-99'")
    browser.execute_script("location.hash = '#response-2-token-99999'")
    WebDriverWait(browser, 5).until(lambda b: at(b) == len(report.views[1].tokens) - 1)
    opened(browser, page)
    one(browser, "a[href='#response-2']").click()
    WebDriverWait(browser, 5).until(lambda b: one(b, "#view-shown").text.startswith("Response 2:"))
    assert browser.get_log("browser") == []


def test_the_list_is_sorted_by_any_column_both_ways(browser, page):
    opened(browser, page)
    assert rows(browser) == sorted(rows(browser))
    heads = [head.text.strip(" ▲▼") for head in all_of(browser, "#view-list thead th")]
    for place, title in enumerate(heads):
        if not place:
            continue
        ways = []
        for _ in range(2):
            all_of(browser, "#view-list thead button")[place].click()
            ways.append(one(browser, f"#view-list thead th:nth-child({place + 1})").get_attribute("aria-sort"))
            shown = column(browser, title)
            if title not in ("why", "response"):
                shown = [float(cell.replace("−", "-").strip(" %")) for cell in shown]
            assert shown == sorted(shown, reverse=ways[-1] == "descending"), title
        assert sorted(ways) == ["ascending", "descending"]
    assert len(all_of(browser, "#view-list th[aria-sort]")) == 1


def test_the_list_is_filtered_by_step_and_by_why(browser, page, report):
    opened(browser, page)
    Select(one(browser, "#view-step")).select_by_value("1")
    assert rows(browser) == [i for i, view in enumerate(report.views, 1) if view.step == 1]
    why = report.views[1].why
    Select(one(browser, "#view-why")).select_by_value(why)
    expected = [i for i, view in enumerate(report.views, 1) if (view.step, view.why) == (1, why)]
    assert rows(browser) == expected
    assert one(browser, "#view-count").text == f"{len(expected)} of {len(report.views)} responses"
    Select(one(browser, "#view-step")).select_by_value("")
    Select(one(browser, "#view-why")).select_by_value("")
    assert len(rows(browser)) == len(report.views)


def test_hostile_texts_stand_there_as_text(browser, tmp_path):
    texts = (audits.NASTY, *audits.ODD)
    view = audits.view(tokens=len(texts), texts=texts, source=audits.NASTY, why=audits.NASTY, first=3)
    made = audits.report((view,), tables=())
    finding = replace(made.findings[0], fault=audits.NASTY, evidence=audits.NASTY, where=audits.NASTY)
    verdict = replace(made.verdict, fault=audits.NASTY, paragraph=audits.NASTY, questions=(audits.NASTY,) * 2)
    table = audits.tables()[5]
    cell = {"turn": audits.NASTY, "k3": audits.NASTY, "size": 1.0, "tokens": 3}
    bad = Report(
        format=audits.NASTY,
        inferred=(audits.NASTY,),
        counts={audits.NASTY: 1},
        verdict=verdict,
        findings=(finding,),
        silent={audits.NASTY: (audits.NASTY,)},
        tables=(replace(table, title=audits.NASTY, note=audits.NASTY, rows=(cell,)),),
        views=(view,),
    )
    file = tmp_path / "hostile.html"
    file.write_bytes(audit_report(bad)["report.html"])
    opened(browser, file)
    waited(browser, "#view-routes")
    assert read(browser, "window.hurt ?? null") is None
    assert browser.get_log("browser") == []
    assert read(browser, "document.scripts.length") == 2  # the data and the viewer
    assert read(browser, "document.querySelectorAll('b, img').length") == 0
    shown = [token.get_attribute("textContent") for token in all_of(browser, "#view-tokens .t")]
    assert shown[0] == audits.NASTY.replace("\u2028", "\\u{2028}").replace("\u202e", "\\u{202e}")
    assert shown[1:] == [
        *("</script>", "<!--", "\\u{2028}", "\\u{202e}evil\\u{202c}", "<b>bold</b>", "&lt;"),
        *("⏎", "⇥", "∅", "\\u{0}", "\\u{d800}"),
    ]
    assert "\u202e" not in read(browser, "document.body.innerText")


def test_views_without_trainer_routes_or_texts_are_shown_with_what_there_is(browser, tmp_path):
    bare = {"logp_mu": None, "logp_old": None, "routes": None, "routes_old": None}
    kinds = [bare, {"routes_old": None}, {"logp_old": None}, {"routes": None}]
    opened(browser, written(tmp_path, tuple(audits.view(i, **kind) for i, kind in enumerate(kinds))))
    for i, kind in enumerate(kinds, 1):
        browser.execute_script(f"location.hash = '#response-{i}'")
        WebDriverWait(browser, 5).until(lambda b, i=i: one(b, "#view-shown").text.startswith(f"Response {i}:"))
        if kind is not bare:
            waited(browser, "#view-routes")
        assert len(all_of(browser, "#view-routes .other")) == 0 or kind == {"logp_old": None}
        assert len(all_of(browser, "#view-tokens .t")) == 80
    assert browser.get_log("browser") == []


def test_rows_that_were_not_sent_are_dashes_and_large_ids_are_kept(browser, tmp_path):
    routes = ((((-1, -1), (300, 7)),) * 4, (((5, 6), (7, 300)),) * 4)
    view = audits.view(tokens=4, routes=routes[0], routes_old=routes[1])
    opened(browser, written(tmp_path, (view,)))
    waited(browser, "#view-routes")
    lines = [line.text.split() for line in all_of(browser, "#view-routes tbody tr")]
    assert lines == [["0", "–", "–", "5", "6"], ["1", "7", "300", "7", "300"]]
    assert not all_of(browser, "#view-routes .other")


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1600, "dark")])
def test_the_page_is_no_wider_than_the_window_and_can_be_read(browser, page, width, scheme):
    opened(browser, page, width=width, scheme=scheme)
    waited(browser, "#view-routes")
    assert read(browser, "document.documentElement.scrollWidth <= innerWidth")
    assert read(browser, LEGIBLE) == []


def test_as_many_tokens_as_a_page_may_hold_load_at_once(browser, tmp_path):
    three = [audits.view(i, tokens=600, layers=48, k=8, experts=128) for i in range(3)]
    views = tuple(replace(three[i % 3], source=f"line {i}") for i in range(24))
    file = written(tmp_path, views)
    assert file.stat().st_size < 12e6
    started = time.monotonic()
    opened(browser, file)
    waited(browser, "#view-routes")
    assert time.monotonic() - started < 3
    started = time.monotonic()
    press(browser, "j", "n", Keys.ARROW_RIGHT)
    assert time.monotonic() - started < 1.5
    assert browser.get_log("browser") == []


def test_printing_leaves_out_the_controls_and_the_chosen_token_lies_over_nothing(browser, page):
    opened(browser, page)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not one(browser, "#view-filters").is_displayed()
    assert read(browser, "getComputedStyle(document.querySelector('#view-detail')).position") == "static"
    assert len(browser.print_page()) > 10_000
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
