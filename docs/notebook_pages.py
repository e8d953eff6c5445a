"""A hook of mkdocs: every notebook is a page, made of its cells and of the outputs that it stores; none is run.

A notebook keeps its name among the sources, so that links to `x.ipynb` lead to the page here and to the notebook on a
code host. The notebook itself lies beside its page, to be downloaded.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

Cell = dict[str, Any]


class Notebook(File):
    """A notebook that mkdocs takes for a page in Markdown."""

    def is_documentation_page(self) -> bool:
        """It is one."""
        return True

    @property
    def content_string(self) -> str:
        """The page."""
        return markdown(self.name, cells(self))


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Take every notebook for a page, and add its pictures."""
    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        files.remove(file)
        page = Notebook(file.src_uri, file.src_dir, file.dest_dir, file.use_directory_urls)
        files.append(page)
        for name, png in pictures(page.name, cells(page)):
            files.append(File.generated(config, str(Path(file.src_uri).with_name(name)), content=png))
    return files


def on_post_build(*, config: MkDocsConfig) -> None:
    """Lay every notebook itself beside its page."""
    for file in Path(config.docs_dir).rglob("*.ipynb"):
        shutil.copy(file, Path(config.site_dir) / file.relative_to(config.docs_dir))


def cells(file: File) -> list[Cell]:
    """The cells of a notebook."""
    return json.loads(file.content_bytes)["cells"]


def markdown(name: str, cells: list[Cell]) -> str:
    """The page of a notebook: its text, its code, and below each piece of code what it shows."""
    number, parts = 0, []
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else fenced(source, "python"))
        for output in cell.get("outputs", ()):
            parts.append(shown(output, picture_name(name, number)))
            number += "image/png" in output.get("data", {})
    parts.insert(1, f'<a href="{name}.ipynb" download>Download this notebook</a>')
    return "\n\n".join(parts) + "\n"


def pictures(name: str, cells: list[Cell]) -> Iterator[tuple[str, bytes]]:
    """File names and contents of the pictures of a notebook."""
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    for number, each in enumerate(found):
        yield picture_name(name, number), base64.b64decode(each)


def picture_name(name: str, number: int) -> str:
    """The file of a picture, counted from 0."""
    return f"{name}-{number}.png"


def shown(output: Cell, picture: str) -> str:
    """An output as a picture, a table, or text: the first that it has."""
    data = output.get("data", {})
    if "image/png" in data:
        return f"![what the code above draws]({picture})"
    table = re.search(r"<table.*</table>", "".join(data.get("text/html", ())), flags=re.DOTALL)
    if table:
        return re.sub(r"<table[^>]*>", "<table>", re.sub(r"\s*\n\s*", "", table[0]))
    text = fenced("".join(output.get("text") or data["text/plain"]), "text")
    return "> " + text.replace("\n", "\n> ")  # a line at the left tells it from code


def fenced(text: str, language: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"
