"""`make docs` fails where it should: tried on a copy of the site with a stub for every page."""

import shutil
import subprocess
import sys
from pathlib import Path

from firstorder.cli.report import explorer

ROOT = Path(__file__).parents[1]
BROKEN = ("[cross-reference][firstorder.nothing.at_all]", "[link](nowhere.md)", "[anchor](#nowhere)")


def build(folder, text):
    for page in (ROOT / "docs").glob("*.md"):
        (folder / "docs").mkdir(exist_ok=True)
        (folder / "docs" / page.name).write_text(f"# {page.stem}\n")
    (folder / "docs/theory.md").write_text(f"# Theory\n\n{text}\n")
    for name in ("Makefile", "mkdocs.yml", "docs/hooks.py"):
        shutil.copy(ROOT / name, folder / name)
    command = ["make", "docs", f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_site_without_a_fault_is_built(tmp_path):
    done = build(tmp_path, "[itself](theory.md) and [the explorer](explorer.html)")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/explorer.html").read_text(encoding="utf-8") == explorer.page()


def test_a_site_with_broken_references_is_refused_for_each_of_them(tmp_path):
    done = build(tmp_path, "\n".join(BROKEN))
    assert done.returncode != 0
    assert f"Aborted with {len(BROKEN)} warnings in strict mode" in done.stdout + done.stderr
