"""The built site in a browser: it fits a phone, in both schemes, and asks nobody for anything."""

import json

import pytest

SCHEMES = {"light": "default", "dark": "slate"}
TRIED = ("index.html", "theory.html", "recipes.html", "numerics.html")
UNSEEN = "return [...document.querySelectorAll('math')].filter(e => !e.getBoundingClientRect().width).length"
COLOURS = "return [...document.querySelectorAll('math, article')].map(e => getComputedStyle(e).color)"


def asked(browser):
    """The addresses that were asked for since the last call."""
    lines = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [each["params"]["request"]["url"] for each in lines if each["method"] == "Network.requestWillBeSent"]


def opened(browser, address, scheme):
    """The browser as a phone in a scheme, that has not been on the site before and has nothing in its logs."""
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(f"{address}/index.html")
    browser.execute_script("localStorage.clear()")
    browser.get("about:blank")
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get_log("browser"), browser.get_log("performance")
    return browser


def check_page(browser, address, page):
    browser.get(f"{address}/{page}")
    assert browser.execute_script("return document.scrollingElement.scrollWidth") == 390, page
    assert browser.execute_script(UNSEEN) == 0, page
    assert browser.get_log("browser") == [], page
    assert {url for url in asked(browser) if not url.startswith((f"{address}/", "data:", "blob:"))} == set(), page


def test_every_page_fits_a_phone_without_an_error_or_a_request_to_another_host(browser, site, address):
    opened(browser, address, "light")
    pages = sorted(path.name for path in site.glob("*.html"))
    assert set(TRIED) < set(pages)
    for page in pages:
        check_page(browser, address, page)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_page_has_the_scheme_of_the_system(browser, address, scheme):
    opened(browser, address, scheme)
    for page in TRIED:
        check_page(browser, address, page)
        assert browser.execute_script("return document.body.dataset.mdColorScheme") == SCHEMES[scheme]
        colours = browser.execute_script(COLOURS)
        assert len(set(colours)) == 1, page


def test_a_formula_wider_than_a_phone_scrolls_in_its_own_box(browser, address):
    browser.get(f"{address}/theory.html")
    wide = "return [...document.querySelectorAll('.formula')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert browser.execute_script(wide) > 0
