"""The verdict: the fault that explains the most, or that the dump is normal, in one paragraph with its figures.

What an earlier question finds explains what later ones see: log-probs that are shifted by a row also look like another
temperature. So the first finding in the order of the questions leads, and the others are named as to be asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .finding import Finding
from .report import Verdict

NORMAL_QUESTIONS = (
    "does it stay so: are the early and the late steps alike in the table by step?",
    "what does this discrepancy cost at this length and this many updates: `firstorder measure`, docs/collapse.md?",
)
SILENT_QUESTIONS = (
    "can the trainer's log-probs of the same tokens be dumped beside them: which format holds both?",
    "were these tokens scored with the weights that sampled them: what does `firstorder probe` say of one batch?",
)


def verdict(findings: Sequence[Finding], counts: Mapping[str, int], lacking: Sequence[str], normal: str) -> Verdict:
    """The verdict of an audit.

    Args:
        findings: in the order of the questions.
        counts: of the report.
        lacking: which of the two log-probs the dump does not hold.
        normal: what the sizes are, where nothing else was found: a sentence with its figures.
    """
    responses, tokens, steps = (f"{counts[name]:,}" for name in ("responses", "tokens_sampled", "steps"))
    seen = f"{responses} responses with {tokens} sampled tokens of {steps} steps"
    if findings:
        return _faulty(findings, seen)
    if lacking:
        paragraph = (
            f"Nothing that was looked for is wrong with {seen}, but the two engines cannot be compared: the dump "
            f"has no {' and no '.join(lacking)}."
        )
        return Verdict(fault=None, paragraph=paragraph, questions=SILENT_QUESTIONS)
    return Verdict(fault=None, paragraph=f"Normal: {seen}. {normal}", questions=NORMAL_QUESTIONS)


def _faulty(findings: Sequence[Finding], seen: str) -> Verdict:
    first, others = findings[0], list(dict.fromkeys(finding.fault for finding in findings[1:]))
    where = f" It is first seen in {first.where}." if first.where else ""
    more = (
        f" Also seen, and to be looked at again once that is mended: {', '.join(others)}, since one fault often makes "
        "the signs of another."
        if others
        else ""
    )
    return Verdict(
        fault=first.fault,
        paragraph=f"{_capital(first.fault)}: {first.evidence}{where}{more} ({seen}.)",
        questions=first.questions,
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
