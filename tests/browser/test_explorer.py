import math

import pytest
from driving import LEGIBLE, all_of, one, opened, press, read, requests, slid
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import firstorder as fo
from firstorder.cli.report import explorer

PUBLISHED = "#kl=0.0015&flips=0.1&n=4&horizon=8192&step=0.0001"
NAMED = {"none": "no replay"}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return fo.explore(tmp_path_factory.mktemp("explorer") / "explorer.html").page


@pytest.fixture(scope="module")
def data():
    return explorer.read()


def number(text):
    return float(text.replace("−", "-").replace(",", ""))


def column(browser, quantity):
    """What a block of bars says, by replay."""
    found = {}
    for row in all_of(browser, f"#bars [data-of={quantity}] tbody tr"):
        name, value = one(row, "th").text, one(row, "td.number").text
        found[name.rstrip(" ★=")] = number(value)
    return found


def expected(answer, quantity):
    """The same of an answer of `recommend`: the options that differ from the advice in their replay alone."""
    kind = (answer.advice["correction"], answer.advice["clip"])
    return {
        NAMED.get(row["replay"], row["replay"]): pytest.approx(row[quantity], rel=6e-3)
        for row in answer.options
        if (row["correction"], row["clip"]) == kind
    }


@pytest.mark.parametrize("width", [1280, 390])
def test_a_stranger_asks_for_a_regime_and_reads_the_advice(browser, page, data, width):
    opened(browser, page, width=width)
    axes = data["decision"]["axes"]
    for name, value in (("kl", 1.5e-3), ("flips", 0.1), ("n", 4), ("horizon", 8192)):
        slid(browser, name, value, axes[name])
    answer = fo.recommend(kl=1.5e-3, flips=0.1, n=4, horizon=8192)
    assert one(browser, "#answer").text == NAMED.get(answer.advice["replay"], answer.advice["replay"])
    assert one(browser, "#command").text == answer.advice["command"]
    assert one(browser, "#paper").text == answer.paper["said"].replace("theta/mu", "θ/μ")
    for quantity in data["decision"]["numbers"]:
        assert column(browser, quantity) == expected(answer, quantity)
    assert len(all_of(browser, "#changes li")) == sum(len(sides) for sides in answer.changes.values())

    slid(browser, "n", 1, axes["n"])
    other = fo.recommend(kl=1.5e-3, flips=0.1, n=1, horizon=8192)
    assert other.advice["replay"] != answer.advice["replay"]
    assert one(browser, "#answer").text == NAMED.get(other.advice["replay"], other.advice["replay"])
    assert column(browser, "error") == expected(other, "error")

    all_of(browser, ".node")[3].click()
    noise, stale = (
        int(read(browser, f"document.querySelector('#{name}').selectedIndex ?? 0")) for name in ("noise", "stale")
    )
    noise = int(one(browser, "#noise").get_attribute("value"))
    node = data["policy"]["nodes"][noise * len(data["policy"]["staleness"]) + stale][3]
    assert one(browser, "#node h3").text == "After " + " ".join(map(str, node["tokens"]))
    for name, values in node["logp"].items():
        for token, logp in enumerate(values):
            shown = number(one(browser, f"#node [data-of={name}-{token}]").text)
            assert shown == pytest.approx(math.exp(logp), rel=6e-3)

    assert read(browser, "document.documentElement.scrollWidth <= innerWidth")
    assert list(requests(browser)) == [page.as_uri()]
    assert browser.get_log("browser") == []


def test_every_cell_of_the_map_is_the_advice_that_is_stored(browser, page, data):
    opened(browser, page, "#kl=0.0015&flips=0.1&n=8&horizon=32768&step=0.0001")
    decision = data["decision"]
    axes, chosen, sure = decision["axes"], decision["columns"]["chosen"], decision["columns"]["sure"]
    cells = {
        (float(c.get_attribute("data-kl")), float(c.get_attribute("data-flips"))): c
        for c in all_of(browser, "#map button")
    }
    places = [axes[name].index(value) for name, value in (("step", 1e-4), ("horizon", 32768), ("n", 8))]
    start = ((places[0] * len(axes["horizon"]) + places[1]) * len(axes["n"]) + places[2]) * len(axes["flips"])
    for row, flips in enumerate(axes["flips"]):
        for place, kl in enumerate(axes["kl"]):
            at = (start + row) * len(axes["kl"]) + place
            option, said = decision["options"][chosen["values"][chosen["at"][at]]], sure["values"][sure["at"][at]]
            looks = cells.pop((kl, flips)).get_attribute("class").split()
            assert looks[0] == option["replay"].split()[0]
            assert ("beyond" in looks) == (bool(said["outside"]) or not said["around"])
    assert cells == {}


def test_the_map_is_chosen_from_with_the_pointer_and_with_the_arrow_keys(browser, page):
    opened(browser, page, PUBLISHED)
    one(browser, "#map [data-kl='0.02'][data-flips='0.05']").click()
    assert one(browser, "#kl-said").text == "0.02"
    assert one(browser, "#flips-said").text == "0.05"
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_UP, Keys.ARROW_RIGHT)
    assert (one(browser, "#kl-said").text, one(browser, "#flips-said").text) == ("0.04", "0.1")
    assert one(browser, "#answer-where").text.startswith("Outside what was measured, which ends at KL 0.02")
    assert "No measured cell" not in one(browser, "#answer-where").text
    assert read(browser, "document.activeElement.getAttribute('aria-pressed')") == "true"
    assert len(all_of(browser, "#map [tabindex='0']")) == 1


def test_a_regime_that_nothing_was_measured_around_says_so_beside_its_nearest_cell(browser, page):
    opened(browser, page, "#kl=0.04&flips=0.3&n=8&horizon=512&step=0.001")
    said = one(browser, "#answer-where").text
    assert said.startswith("Outside what was measured, which ends at KL 0.02")
    assert said.endswith("No measured cell lies around this regime: the nearest stands in.")
    answer = fo.recommend(kl=0.04, flips=0.3, n=8, horizon=512, step=1e-3)
    (line,) = [each.text for each in all_of(browser, "#sure li") if each.text.startswith("Nearest")]
    nearest = answer.sure["nearest"]
    for name, of in (("T", "horizon"), ("step", "step"), ("flips", "flips_found"), ("entropy", "entropy")):
        assert number(line.split(f" {name} ")[1].split(",")[0].rstrip(".")) == pytest.approx(nearest[of], rel=6e-3)


def test_the_address_holds_what_is_shown_and_shows_what_it_holds(browser, page):
    opened(browser, page, "#kl=0.02&flips=0.3&n=2&horizon=512&step=0.001&noise=0.8&replay=R2&method=gspo&node=5")
    said = [one(browser, f"#{name}-said").text for name in ("kl", "flips", "n", "horizon", "step", "noise")]
    assert said == ["0.02", "0.3", "2", "512", "0.001", "0.8"]
    assert one(browser, "#node h3").text == "After 2 1"
    Select(one(browser, "#stale")).select_by_value("3")
    address = read(browser, "location.hash")
    shown = one(browser, "body").text
    opened(browser, page, address)
    assert one(browser, "body").text == shown
    browser.execute_script("location.hash = '#kl=0.0016&flips=nonsense&n=99&replay=R9'")
    assert [one(browser, f"#{name}-said").text for name in ("kl", "flips", "n")] == ["0.0015", "0.1", "8"]
    assert browser.get_log("browser") == []


def test_the_numbers_of_a_policy_are_those_that_are_stored(browser, page, data):
    opened(browser, page)
    policy = data["policy"]
    slid(browser, "noise", 0.2, policy["noises"])
    Select(one(browser, "#stale")).select_by_value("3")
    Select(one(browser, "#method")).select_by_value("grpo")
    Select(one(browser, "#replay")).select_by_value("R2")
    rows = policy["measured"][policy["noises"].index(0.2) * 2 + 1]
    for replay, row in zip(policy["replays"], rows[policy["methods"].index("grpo") * 3 :], strict=False):
        for name, value in zip(policy["numbers"], row[:-1], strict=True):
            shown = number(one(browser, f"#numbers [data-of={name}-{replay}]").text)
            assert shown == pytest.approx(value, rel=6e-3), (name, replay)
    flips = [any(node["flipped"]) for node in policy["nodes"][policy["noises"].index(0.2) * 2 + 1]]
    assert [bool(all_of(box, ".flip")) for box in all_of(browser, ".node")] == flips


def test_every_control_is_named_and_reached_with_the_tab_key(browser, page):
    opened(browser, page)
    reached = set()
    for _ in range(60):
        press(browser, Keys.TAB)
        reached.add(read(browser, "document.activeElement.id || document.activeElement.className.split(' ')[0]"))
    controls = {box.get_attribute("id") for box in all_of(browser, "input, select")}
    assert controls == {
        *("kl", "flips", "n", "horizon", "step", "curve-of", "noise", "stale", "replay", "method", "noise-of"),
    }
    assert controls | {"node"} <= reached
    assert read(browser, "[...document.querySelectorAll('input, select')].filter(e => !e.labels.length).length") == 0


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_the_page_is_no_wider_than_the_window_and_can_be_read(browser, page, width, scheme):
    opened(browser, page, width=width, scheme=scheme)
    browser.execute_script("document.querySelector('details').open = true")
    assert read(browser, "document.documentElement.scrollWidth <= innerWidth")
    assert read(browser, LEGIBLE) == []
    assert all(read(browser, "[...document.querySelectorAll('.chart canvas')].map(c => c.width > 200)"))
    assert read(browser, "[...document.querySelectorAll('#curve .u-value')].map(v => v.textContent)")[1:] != [""] * 3
