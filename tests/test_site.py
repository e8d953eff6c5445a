"""`make docs` fails where it should: tried on a copy of the site with a stub for every page."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BROKEN = ("[cross-reference][firstorder.nothing.at_all]", "[link](nowhere.md)", "[anchor](#nowhere)")


def build(folder, text):
    for page in (ROOT / "docs").rglob("*.md"):
        place = folder / page.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"# {page.stem}\n")
    shutil.copy(ROOT / "docs/nav.py", folder / "docs")
    (folder / "docs/theory.md").write_text(f"# Theory\n\n{text}\n")
    for name in ("Makefile", "mkdocs.yml"):
        shutil.copy(ROOT / name, folder)
    command = ["make", "docs", f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_site_without_a_fault_is_built(tmp_path):
    done = build(tmp_path, "[itself](theory.md)")
    assert done.returncode == 0, done.stderr


def test_a_site_with_broken_references_is_refused_for_each_of_them(tmp_path):
    done = build(tmp_path, "\n".join(BROKEN))
    assert done.returncode != 0
    assert f"Aborted with {len(BROKEN)} warnings in strict mode" in done.stdout + done.stderr
