"""`make docs` fails where it should: tried on a copy of the site with a stub for every page and notebook."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from firstorder.cli.report import explorer

ROOT = Path(__file__).parents[1]
BROKEN = ("[cross-reference][firstorder.nothing.at_all]", "[link](nowhere.md)", "[anchor](#nowhere)")


PNG = base64.b64encode(b"a picture").decode()
OUTPUTS = [
    {"output_type": "stream", "name": "stdout", "text": ["one\n", "two\n"]},
    {"output_type": "execute_result", "data": {"image/png": PNG, "text/plain": ["<Figure>"]}},
    {
        "output_type": "execute_result",
        "data": {"text/html": ["<div>\n", '<table class="a">\n', "<tr><td>3</td></tr></table></div>"]},
    },
]


def notebook(text):
    cells = [
        {"cell_type": "markdown", "source": [text]},
        {"cell_type": "code", "source": ["x < 1"], "outputs": OUTPUTS},
    ]
    return json.dumps({"cells": cells})


def build(folder, text, of_notebook="# A notebook\n\n[theory](../theory.md)"):
    for page in (ROOT / "docs").rglob("*.md"):
        place = folder / page.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"# {page.stem}\n")
    (folder / "docs/theory.md").write_text(f"# Theory\n\n{text}\n")
    (folder / "docs/notebooks").mkdir()
    for page in (ROOT / "docs/notebooks").iterdir():
        (folder / "docs/notebooks" / page.name).write_text(notebook(of_notebook))
    for name in ("Makefile", "mkdocs.yml", "docs/hooks.py", "docs/nav.py", "docs/notebook_pages.py"):
        shutil.copy(ROOT / name, folder / name)
    command = ["make", "docs", f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_site_without_a_fault_is_built(tmp_path):
    done = build(tmp_path, "[itself](theory.md), [the explorer](explorer.html), [a notebook](notebooks/r2-or-r3.ipynb)")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/explorer.html").read_text(encoding="utf-8") == explorer.page()
    assert 'href="notebooks/r2-or-r3.html"' in (tmp_path / "site/theory.html").read_text()


def test_a_notebook_is_a_page_with_its_outputs(tmp_path):
    done = build(tmp_path, "")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/notebooks/r2-or-r3.html").read_text()
    assert "<h1" in page
    assert 'href="../theory.html"' in page
    assert re.search(r"x.*&lt;.*1", page)
    assert "one\ntwo" in page
    assert "<table><tr><td>3</td></tr></table>" in page
    assert 'src="r2-or-r3-0.png"' in page
    assert (tmp_path / "site/notebooks/r2-or-r3-0.png").read_bytes() == b"a picture"
    assert 'href="r2-or-r3.ipynb" download' in page
    assert json.loads((tmp_path / "site/notebooks/r2-or-r3.ipynb").read_text())["cells"]


def test_a_site_with_broken_references_is_refused_for_each_of_them(tmp_path):
    done = build(tmp_path, "\n".join(BROKEN))
    assert done.returncode != 0
    assert f"Aborted with {len(BROKEN)} warnings in strict mode" in done.stdout + done.stderr


def test_a_broken_link_of_a_notebook_is_refused(tmp_path):
    done = build(tmp_path, "", "# A notebook\n\n[link](../nowhere.md)")
    assert done.returncode != 0
    notebooks = len(list((ROOT / "docs/notebooks").iterdir()))
    assert f"Aborted with {notebooks} warnings in strict mode" in done.stdout + done.stderr
