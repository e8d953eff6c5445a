"""A real browser, and audits made up for it."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))  # audits.py
sys.path.insert(0, str(Path(__file__).parent))  # driving.py

CHROMIUM = "apt-get install -y --no-install-recommends chromium chromium-driver"


@pytest.fixture(scope="session")
def browser():
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if chromium is None or driver is None:
        pytest.fail(f"these tests drive Chromium, which is not installed; {CHROMIUM}")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1000"):
        options.add_argument(argument)
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()
