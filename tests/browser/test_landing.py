"""A stranger goes from the first page to a decision for engines of their own, without a manual."""

import pytest
from driving import all_of, one, slid, waited

import firstorder as fo
from firstorder.cli.report import explorer

MINE = {"kl": 5e-3, "flips": 0.2, "n": 8, "horizon": 8192}
PICTURES = ("landing-collapse.svg", "landing-map.svg")
SHOWN = {"none": "no replay"}


@pytest.mark.parametrize("width", [1280, 390])
def test_from_the_first_page_to_a_decision(browser, address, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(f"{address}/index.html")
    assert one(browser, "h1").text.startswith("Is my RL recipe stable")
    pictures = all_of(browser, "article img")
    assert [each.get_attribute("src").rpartition("/")[2] for each in pictures[:2]] == list(PICTURES)
    assert all(int(each.get_attribute("naturalWidth")) > 0 for each in pictures)
    assert all(each.rect["width"] > 250 for each in pictures)  # or its words are too small to read
    button = one(browser, "a.md-button--primary")
    assert "R2, R3 or none" in button.text
    button.click()
    waited(browser, "#answer")
    axes = explorer.read()["decision"]["axes"]
    for name, value in MINE.items():
        slid(browser, name, value, axes[name])
    answer = fo.recommend(**MINE)
    assert one(browser, "#answer").text == SHOWN.get(answer.advice["replay"], answer.advice["replay"])
    assert one(browser, "#command").text == answer.advice["command"]
    assert one(browser, "#answer-where").text
    assert browser.get_log("browser") == []
