"""Formulas of the pages as MathML, made when the site is built: nothing is fetched or run when a page is read.

A hook of MkDocs. `pymdownx.arithmatex` marks what is TeX, written as GitHub has it: a fence named `math`, `$...$` in a
line, and $`...`$ where Markdown would read a sign of the formula itself. This turns it into MathML. latex2mathml lets
much pass that it does not know, so what it makes is checked: a formula that TeX would refuse ends the build.
"""

import html
import re
from xml.etree import ElementTree

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", NAMESPACE)
FORMULA = re.compile(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', flags=re.DOTALL)
GUARDED = re.compile(r"\$`([^`\n]+)`\$")
ENVIRONMENTS = {"aligned", "array", "cases"}
CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
SCRIPTS = ("msub", "msup", "msubsup", "munder")
OPENING, CLOSING, BREAKING = ("(", "[", "{"), (")", "]", "}"), ("=", "≤", "≥", "≈", "<", ">", "+", "−")
FENCE = re.compile(r"\\(l|r)[vV]ert(?![a-zA-Z])")
SIDES = {"l": r"\left", "r": r"\right"}


def on_page_markdown(markdown, **_):
    """The text of a page with GitHub's second way to write a formula in a line as the first."""
    return GUARDED.sub(r"$\1$", markdown)


def on_page_content(content, page, **_):
    """The HTML of a page with MathML in the place of its formulas; the build ends at one that is broken."""

    def replaced(match):
        tag, tex = match[1], html.unescape(match[2]).strip()
        try:
            formula = mathml(tex, block=tag == "div")
        except ValueError as error:
            raise PluginError(f"{page.file.src_uri}: {error}: {tex}") from error
        return f'<div class="formula">{formula}</div>' if tag == "div" else formula

    return FORMULA.sub(replaced, content)


def mathml(tex, *, block):
    r"""MathML of a formula in TeX.

    Args:
        tex: What stands between the dollars.
        block: Whether it stands by itself, or in a line of text.

    Raises:
        ValueError: If it is not well-formed, or holds a command or an environment that is not known.
    """
    check_source(tex)
    known = FENCE.sub(lambda match: rf"{SIDES[match[1]]}{match[0]}", tex.replace("{aligned}", "{align*}"))
    try:
        tree = ElementTree.fromstring(convert(known, display="block" if block else "inline"))
    except Exception as error:  # latex2mathml has a dozen, and an IndexError or two
        raise ValueError(f"a formula that is not TeX ({type(error).__name__})") from error
    check_result(tree)
    for parent in list(tree.iter()):
        set_prime(parent)
        set_code(parent)
        set_names(parent)
    parts = [tree] if block else lines(tree)
    return "".join(ElementTree.tostring(part, encoding="unicode") for part in parts)


def lines(tree):
    """A formula in a line as the parts between which the line may break: TeX breaks after = and +, browsers do not."""
    nodes = list(tree[0])
    parts, depth = [[]], 0
    for node in nodes:
        sign = node.text if local(node) == "mo" else ""
        depth += (sign in OPENING) - (sign in CLOSING) if sign else 0
        parts[-1].append(node)
        if sign in BREAKING and depth == 0 and len(parts[-1]) > 1 and node is not nodes[-1]:
            node.set("form", "infix")
            parts.append([])
    for part in parts:
        row = ElementTree.Element(f"{{{NAMESPACE}}}math", tree.attrib)
        ElementTree.SubElement(row, f"{{{NAMESPACE}}}mrow").extend(part)
        yield row


def check_source(tex):
    """Refuses braces without a partner and environments that would be passed over."""
    bare = re.sub(r"\\[{}]", "", tex)
    if bare.count("{") != bare.count("}"):
        raise ValueError("a formula with a brace too many or too few")
    for name in re.findall(r"\\begin\{(.*?)\}", tex):
        if name not in ENVIRONMENTS or tex.count(rf"\begin{{{name}}}") != tex.count(rf"\end{{{name}}}"):
            raise ValueError(f"a formula with an environment that is not known or not closed, {name}")


def check_result(tree):
    """Refuses commands that came through as text, and fractions and scripts that lack a part."""
    for node in tree.iter():
        if "\\" in (node.text or ""):
            raise ValueError(f"a formula with a command that is not known, {node.text}")
        if len(node) != CHILDREN.get(local(node), len(node)) or node.get("linebreak"):
            raise ValueError(f"a formula that lacks a part ({local(node)})")


def local(node):
    """The name of an element without its namespace."""
    return node.tag.removeprefix(f"{{{NAMESPACE}}}")


def set_prime(script):
    """A prime beside what it belongs to: its letter stands high by itself, and would be raised twice."""
    if local(script) == "msup" and script[1].text == "′":
        script.tag, script[1].tag = f"{{{NAMESPACE}}}mrow", f"{{{NAMESPACE}}}mo"
        script[1].set("lspace", "0"), script[1].set("rspace", "0")


def set_code(row):
    """`\\mathtt{...}`, of which browsers would show the letters one by one in italics, as one word."""
    if len(row) and all(node.get("mathvariant") == "monospace" for node in row):
        row.tag, row.text = f"{{{NAMESPACE}}}mtext", "".join(node.text for node in row)
        row.set("class", "code")
        row[:] = []


def set_names(row):
    """Names of functions, and symbols that latex2mathml takes for letters, spaced as TeX does."""
    for node in row:
        if node.text in ("⏟", "⏞"):
            node.set("stretchy", "true")
        if local(node) == "mo" and node.text == "/":
            node.set("lspace", "0"), node.set("rspace", "0")
        if local(node) == "mi" and node.text == "~":  # \sim
            node.tag, node.text = f"{{{NAMESPACE}}}mo", "∼"
    if local(row) not in ("mrow", "mtd", "math"):
        return
    for place in reversed(range(len(row))):
        if is_name(row[place]):
            leave_space(row, place + 1, (), row[place + 1 : place + 2])
            leave_space(row, place, (")", "]", "}"), row[max(place - 1, 0) : place])


def is_name(node):
    """Whether an element is the name of a function, log or max, with or without scripts."""
    if local(node) in SCRIPTS:
        return is_name(node[0])
    if local(node) == "mo" and len(node.text or "") > 1 and node.text.isalpha():
        node.tag = f"{{{NAMESPACE}}}mi"
        node.attrib.clear()
    return local(node) == "mi" and len(node.text or "") > 1 and node.text.isalpha()


def leave_space(row, place, closing, beside):
    """A thin space between a name and what stands beside it, if this is no operator, or one that closes a bracket."""
    if any(local(node) != "mspace" and (local(node) != "mo" or node.text in closing) for node in beside):
        row.insert(place, ElementTree.Element(f"{{{NAMESPACE}}}mspace", width="0.167em"))
