"""A peer's answers beside the golden vectors, row by row: what agrees, what is known to differ, what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firstorder.core.conformance.answer import numbers
from firstorder.core.conformance.check import compared

from .rows import Row

GATE = 1e-7  # as the vectors are held to; programs that do the same agree to 1e-12
AGREES, KNOWN = "agrees", "known difference"
UNEXPECTED, VANISHED, FAILED, MISSING = "unexpected difference", "difference has vanished", "failed", "not answered"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row on one case.

    Args:
        row: what is compared.
        case: or group.
        status: one of the words above.
        detail: the difference, or the error; nothing where both agree.
        why: of a difference that is known.
    """

    row: Row
    case: str
    status: str
    detail: str = ""
    why: str = ""

    @property
    def expected(self) -> bool:
        """Whether it is as the row says."""
        return self.status in (AGREES, KNOWN)


def outcomes(rows: Sequence[Row], answers: Mapping[str, Any], vectors: Mapping[str, Any]) -> list[Outcome]:
    """Every row on every case of one peer.

    Args:
        rows: of that peer.
        answers: what `run` wrote, the part `rows`.
        vectors: the golden vectors.
    """
    return [
        _outcome(row, case, answers.get(row.name, {}).get(case), expected)
        for row in rows
        for case, expected in ours(row, vectors["expected"]).items()
    ]


def ours(row: Row, expected: Mapping[str, Any]) -> dict[str, Any]:
    """What the vectors have for a row, by case; cases without a value are left out."""
    section, name, *output = row.ours.split("/")
    if section == "metrics":
        return {case: entry[name] for case, entry in expected["metrics"].items() if name in entry}
    if section == "receipts":
        return {case: _share(entry["receipts"], output[0]) for case, entry in expected["methods"][name].items()}
    if section == "advantages":
        return {case: entry["advantage"] for case, entry in expected["advantages"][name].items()}
    return {case: entry[output[0]] for case, entry in expected[section][name].items()}


def _share(receipts: Mapping[str, Sequence[float]], names: str) -> float:
    """Receipts as the share of tokens that they acted on."""
    chosen = [receipts[name] for name in names.split("+")]
    return sum(acted for acted, _ in chosen) / chosen[0][1]


def _places(leaf: Any) -> list[tuple[int, ...]]:
    return [place for place, _ in numbers(leaf)]


def _outcome(row: Row, case: str, answer: Mapping[str, Any] | None, expected: Any) -> Outcome:
    why = row.differs.get(case, "")
    if answer is None:
        return Outcome(row=row, case=case, status=MISSING, why=why)
    if "error" in answer:
        return Outcome(row=row, case=case, status=FAILED, detail=answer["error"], why=why)
    if _places(answer["got"]) != _places(expected):
        return Outcome(row=row, case=case, status=FAILED, detail="the answer has another shape", why=why)
    section, name, *_ = row.ours.split("/")
    worst = compared((section, case, name), answer["got"], expected, GATE).worst
    if worst is None:
        return Outcome(row=row, case=case, status=VANISHED if why else AGREES, why=why)
    at = "".join(f"[{index}]" for index in worst.place)
    detail = f"{case}{at}: got {worst.got:.6g}, expected {worst.expected:.6g}"
    return Outcome(row=row, case=case, status=KNOWN if why else UNEXPECTED, detail=detail, why=why)
