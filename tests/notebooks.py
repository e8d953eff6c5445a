"""Notebooks without Jupyter: run their code cells, and store what they show.

python tests/notebooks.py docs/notebooks/r2-or-r3.ipynb     # run it, and store the outputs anew
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLOURS = 48  # of a stored picture
Output = dict[str, Any]


def read(file: Path) -> list[dict[str, Any]]:
    """The cells of a notebook."""
    return json.loads(file.read_text(encoding="utf-8"))["cells"]


def executed(cells: list[dict[str, Any]]) -> Iterator[list[Output]]:
    """What each code cell shows, one after another in one namespace; a line that starts with % is left out."""
    os.environ["MPLBACKEND"] = "Agg"
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            source = "".join(line for line in cell["source"] if not line.startswith("%"))
            yield run(source, namespace)


def run(source: str, namespace: dict[str, Any]) -> list[Output]:
    """What a cell prints, and the value of its last line."""
    tree, value = ast.parse(source), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "cell", "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
    outputs: list[Output] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines(printed.getvalue())})
    if value is not None and not source.rstrip().endswith(";"):
        outputs.append({"output_type": "execute_result", "metadata": {}, "data": data(value)})
    return outputs + [{"output_type": "display_data", "metadata": {}, "data": each} for each in open_figures()]


def open_figures() -> Iterator[dict[str, Any]]:
    """The figures that a cell has left open in pyplot, which Jupyter shows below it."""
    if "matplotlib.pyplot" not in sys.modules:
        return
    from matplotlib import pyplot

    for number in pyplot.get_fignums():
        file = io.BytesIO()
        pyplot.figure(number).savefig(file, metadata={"Software": None})
        yield {"image/png": picture(file.getvalue()), "text/plain": lines("<Figure>")}
        pyplot.close(number)


def data(value: Any) -> dict[str, Any]:
    """A value in every form in which a notebook can show it."""
    forms: dict[str, Any] = {}
    if hasattr(value, "_repr_png_"):
        forms["image/png"] = picture(value._repr_png_())
    elif hasattr(value, "_repr_html_"):
        forms["text/html"] = lines(value._repr_html_())
    return forms | {"text/plain": lines(repr(value))}


def picture(png: bytes) -> str:
    """A PNG as a notebook keeps it, with the few colours that a drawing of lines needs: a third of the bytes."""
    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def lines(text: str) -> list[str]:
    """A text as notebooks keep it."""
    return text.splitlines(keepends=True)


def texts(outputs: list[Output]) -> str:
    """All that is text in the outputs of a cell."""
    return "".join("".join(each.get("text") or each["data"]["text/plain"]) for each in outputs)


def store(file: Path) -> None:
    """Run a notebook and store what it shows."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    code = [cell for cell in whole["cells"] if cell["cell_type"] == "code"]
    for number, (cell, outputs) in enumerate(zip(code, executed(whole["cells"]), strict=True), start=1):
        for each in outputs:
            if each["output_type"] == "execute_result":
                each["execution_count"] = number
        cell |= {"execution_count": number, "outputs": outputs}
    file.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ |= {"COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    store(Path(sys.argv[1]))
