"""`make docs` fails where it should, tried on a copy of the site with a stub for every page and notebook; formulas are
MathML."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from markdown import Markdown
from mkdocs.config import load_config

import mathml
from firstorder.cli.report import explorer

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BROKEN = ("[cross-reference][firstorder.nothing.at_all]", "[link](nowhere.md)", "[anchor](#nowhere)")
DISPLAYED = "```math\n{}\n```"
REFUSED = {
    r"\frac{a": "a brace too many or too few",
    r"\fraction{a}{b}": "a command that is not known, \\fraction",
    r"\begin{split} a \end{split}": "an environment that is not known or not closed, split",
    r"\begin{aligned} a": "an environment that is not known or not closed, aligned",
    r"\frac{a}": "lacks a part",
    r"a \\ b": "lacks a part",
    "a & b": "that is not TeX",
    r"\left( a": "that is not TeX",
    "x^": "that is not TeX",
}


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
    for name in ("Makefile", "mkdocs.yml", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.py"))):
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


def test_a_formula_is_mathml_in_its_page(tmp_path):
    done = build(tmp_path, f"[itself](theory.md) $x_t$ and $`y_{{*}}, *`$\n\n{DISPLAYED.format('x^2')}")
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "site/theory.html").read_text()
    assert "<msub><mi>x</mi><mi>t</mi></msub>" in made
    assert "<msub><mi>y</mi><mrow><mo>*</mo></mrow></msub>" in made
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in made


def test_a_site_with_broken_references_is_refused_for_each_of_them(tmp_path):
    done = build(tmp_path, "\n".join(BROKEN))
    assert done.returncode != 0
    assert f"Aborted with {len(BROKEN)} warnings in strict mode" in done.stdout + done.stderr


def test_a_broken_link_of_a_notebook_is_refused(tmp_path):
    done = build(tmp_path, "", "# A notebook\n\n[link](../nowhere.md)")
    assert done.returncode != 0
    notebooks = len(list((ROOT / "docs/notebooks").iterdir()))
    assert f"Aborted with {notebooks} warnings in strict mode" in done.stdout + done.stderr


@pytest.mark.parametrize("text", [r"$\rhoo_t$", DISPLAYED.format(r"\rhoo_t")], ids=["inline", "displayed"])
def test_a_site_with_a_broken_formula_is_refused_by_page_and_text(tmp_path, text):
    done = build(tmp_path, text)
    assert done.returncode != 0
    assert r"theory.md: a formula with a command that is not known, \rhoo: \rhoo_t" in done.stdout + done.stderr


@pytest.mark.parametrize("tex", REFUSED)
def test_a_formula_that_tex_would_refuse_is_refused(tex):
    with pytest.raises(ValueError, match=re.escape(REFUSED[tex])):
        mathml.mathml(tex, block=True)


def children(tex):
    (row,) = ElementTree.fromstring(mathml.mathml(tex, block=True))
    return [(mathml.local(node), "".join(node.itertext())) for node in row]


def test_the_name_of_a_function_is_spaced_from_what_it_is_applied_to():
    space = ("mspace", "")
    assert children(r"a \log b") == [("mi", "a"), space, ("mi", "log"), space, ("mi", "b")]
    assert children(r"-\log(b)") == [("mo", "−"), ("mi", "log"), ("mo", "("), ("mi", "b"), ("mo", ")")]
    assert children(r"\operatorname{KL}_c \pi") == [("msub", "KLc"), space, ("mi", "π")]


def test_a_key_is_one_word_a_prime_is_raised_once_and_bars_are_brackets():
    assert children(r"\mathtt{step\_scale}") == [("mtext", "step_scale")]
    assert children("L'") == [("mrow", "L′")]
    assert children(r"\lvert y \rvert_1 \sim \mu") == [("msub", "|y|1"), ("mo", "∼"), ("mi", "μ")]


def test_a_line_may_break_after_a_relation_or_a_sum_outside_brackets_of_a_formula_in_it():
    parts = mathml.mathml("a = -b + f(c = d) = e", block=False).split("<math")
    assert [re.sub("<.*?>", "", part).split(">")[-1] for part in parts[1:]] == ["a=", "−b+", "f(c=d)=", "e"]
    assert mathml.mathml("a = b", block=True).count("<math") == 1


@pytest.fixture(scope="module")
def markdown():
    config = load_config(str(ROOT / "mkdocs.yml"))
    return Markdown(extensions=config.markdown_extensions, extension_configs=config.mdx_configs)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_formula_of_a_page_is_mathml(path, markdown):
    page = SimpleNamespace(file=SimpleNamespace(src_uri=path.name))
    source = mathml.on_page_markdown(path.read_text())
    made = mathml.on_page_content(markdown.reset().convert(source), page)
    assert made.count('display="block"') == path.read_text().count("```math\n")
    text = re.sub(r"<(pre|code|math)\b.*?</\1>", "", made, flags=re.DOTALL)
    assert not re.search(r"\$|\\[a-zA-Z\[(]|arithmatex", text)
