"""The page of a report in Chromium: the verdict first, as wide as a laptop and a phone, in light and in dark."""

import json

import pytest
from run_folders import COLLAPSES, LEARNS, made
from selenium.webdriver.common.by import By

from firstorder.cli.main import run
from firstorder.cli.report.panels import TOGETHER

SIZES = {"laptop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of one run that collapsed, and of more than have room in one axes."""
    folder = tmp_path_factory.mktemp("reports")
    runs = [made(folder / f"a-run-with-a-long-name-{i}", LEARNS if i else COLLAPSES) for i in range(TOGETHER + 1)]
    for name, chosen in (("one", runs[:1]), ("many", runs)):
        assert run(["report", *map(str, chosen), "--out", str(folder / name)]) == 0
    return {name: folder / name / "report.html" for name in ("one", "many")}


def opened(browser, page, size, scheme):
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    width, height = SIZES[size]
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    return browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["one", "many"])
def test_the_page_fits_stands_alone_and_begins_with_the_verdict(browser, pages, name, size, scheme):
    opened(browser, pages[name], size, scheme)
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [line["params"]["request"]["url"] for line in sent if line["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("data:", "about:"))] == [pages[name].as_uri()]

    wide, seen = browser.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert wide <= seen
    box = browser.find_element(By.CSS_SELECTOR, "h1 + .verdict")
    assert "collapsed" in box.text.lower()
    assert box.rect["y"] + box.rect["height"] < SIZES[size][1]
    figures = browser.find_elements(By.CSS_SELECTOR, "figure img")
    assert figures
    for figure in figures:
        assert figure.get_property("complete")
        assert figure.get_property("naturalWidth") > 0
        assert figure.rect["width"] <= seen


@pytest.mark.parametrize("name", ["one", "many"])
def test_panels_stack_on_a_phone(browser, pages, name):
    shapes = {}
    for size in SIZES:
        opened(browser, pages[name], size, "light")
        image = browser.find_element(By.CSS_SELECTOR, "#reward ~ figure img").rect
        shapes[size] = image["height"] / image["width"]
    assert shapes["phone"] > 1.5 * shapes["laptop"]


def test_letters_in_figures_are_large_enough_on_a_phone(browser, pages):
    opened(browser, pages["one"], "phone", "light")
    shown, natural = browser.execute_script(
        "const i = document.querySelector('figure img'); return [i.clientWidth, i.naturalWidth]"
    )
    assert 12 * shown / natural >= 11  # pixels of 9 points


def test_the_reason_of_a_remedy_is_on_the_page(browser, pages):
    opened(browser, pages["one"], "laptop", "light")
    link = browser.find_element(By.LINK_TEXT, "why")
    assert browser.find_element(By.CSS_SELECTOR, link.get_dom_attribute("href")).text.startswith("From what is seen")
