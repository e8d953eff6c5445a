"""A page in a browser: opened at a width and in a colour scheme, read, and what it asked for."""

import json

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

SENT = "Network.requestWillBeSent"

LEGIBLE = """(() => { // texts whose contrast with what is behind them is below 4.5 : 1
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const rgba = (s) => { const n = s.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const over = (top, under) => under.map((u, i) => top[3] * top[i] + (1 - top[3]) * u);
  const behind = (e) => e === null ? [255, 255, 255]
    : over(rgba(getComputedStyle(e).backgroundColor), behind(e.parentElement));
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
    if (e.matches("script, option, noscript")) continue;
    const style = getComputedStyle(e), ground = behind(e);
    const ink = rgba(style.color); ink[3] *= Number(style.opacity);
    const [a, b] = [light(over(ink, ground)), light(ground)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(`${e.className} ${e.textContent.slice(0, 30)}`);
  }
  return low;
})()"""


def opened(browser, page, anchor="", width=1300, height=1000, scheme="light"):
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(f"{page.as_uri()}{anchor}")
    return browser


def requests(browser):
    """What was asked for, by address: whether the policy refused it."""
    lines = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = {line["params"]["requestId"]: line["params"]["request"]["url"] for line in lines if line["method"] == SENT}
    failed = [line["params"] for line in lines if line["method"] == "Network.loadingFailed"]
    refused = {each["requestId"] for each in failed if each.get("blockedReason") == "csp"}
    return {url: each in refused for each, url in sent.items() if not url.startswith(("data:", "about:"))}


def all_of(browser, css):
    return browser.find_elements(By.CSS_SELECTOR, css)


def one(browser, css):
    return browser.find_element(By.CSS_SELECTOR, css)


def waited(browser, css):
    return WebDriverWait(browser, 5).until(lambda b: all_of(b, css))


def read(browser, script):
    return browser.execute_script(f"return {script}")


def press(browser, *keys):
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def slid(browser, name, value, values):
    """Move a slider to a value with the keyboard."""
    one(browser, f"#{name}").send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * values.index(value))
