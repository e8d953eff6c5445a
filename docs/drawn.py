"""A picture of the docs: an SVG in docs/images beside its data, a JSON of the same name.

The SVG holds the digest of the data and of the file that draws it, which a test compares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

IMAGES = Path(__file__).parent / "images"
GREY = "#808080"  # is read on white and on black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v")
STYLE: Any = {
    "font.size": 10,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "firstorder",
    "savefig.transparent": True,
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture.

    Args:
        name: of its files.
        data: makes what it is drawn from.
        draw: draws that.
    """

    name: str
    data: Callable[[], Any]
    draw: Callable[[Any], Figure]

    @property
    def shown(self) -> Any:
        """The data that lies beside it."""
        return json.loads(self._data.read_text())

    @property
    def svg(self) -> str:
        """What is drawn, as text."""
        return (IMAGES / f"{self.name}.svg").read_text()

    @property
    def digest(self) -> str:
        """Of its data and of the file that draws them."""
        code = Path(self.draw.__code__.co_filename).read_bytes()
        return hashlib.sha256(self._data.read_bytes() + code).hexdigest()

    @property
    def _data(self) -> Path:
        return IMAGES / f"{self.name}.json"

    def write(self) -> None:
        """The data, then the picture."""
        self._data.write_text(json.dumps(self.data(), indent=1, ensure_ascii=False) + "\n")
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            figure = self.draw(self.shown)
            figure.savefig(IMAGES / f"{self.name}.svg", metadata={"Date": None, "Description": self.digest})
