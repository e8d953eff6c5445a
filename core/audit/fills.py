"""Judging fills: what the sums of `route_fills` say, one detector a fault.

Shapes: B responses, M layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .finding import EACH, Detector, Finding, Known, Sums, first
from .odds import LEVEL, tail
from .route_fills import CHECKED, SAMPLED, WIDE, fill_sums
from .rows import SIDES, listed

SHORT = 0.9  # of the responses that lack a row, for it to be one that all lack
OFTEN = 0.05  # of the tokens with one and the same row in all layers; and more than ten times what single layers give
FREQUENT = 20  # tokens with it
REPEATED = 0.5  # of the rows of a response that repeat the row before, token ids differing
FEWEST_ROWS = 20
STEPS = 3.0  # of E ids follow another by one or are 0 in chance, for experts loaded up to 1.5 times the mean
ALIKE = 0.9  # of the tokens at which two layers have the same row
STEADY = 0.5  # of the tokens with a layer's most frequent row; beyond it layers may well be alike

Judge = Callable[[Sums, str], Finding | None]


def of(sums: Sums, side: str, name: str) -> Tensor:
    """A count of a side."""
    return sums[f"{EACH}{side} {name[len(EACH) :]}" if name.startswith(EACH) else f"{side} {name}"]


def constant_layers(sums: Sums, side: str) -> Tensor:
    """Layers whose rows never change within a response, bool `[M]`."""
    return of(sums, side, "changes") == 0


def dense_layers(sums: Sums, side: str) -> Tensor:
    """The constant layers that stand where dense ones do: first, last, or at regular distances; bool `[M]`."""
    constant = constant_layers(sums, side)
    return constant if _regular(constant) else torch.zeros_like(constant)


def dense_of(sums: Sums) -> tuple[int, ...]:
    """The numbers of the layers that either engine's routes show to be dense; none where the sums are of no routes."""
    sides = [side for side in SIDES if f"{side} changes" in sums]
    return tuple(sorted({layer for side in sides for layer in dense_layers(sums, side).nonzero().flatten().tolist()}))


def _regular(constant: Tensor) -> bool:
    """First or last layers, fewer than half of all; or every n-th, or all but every n-th."""
    n, places = len(constant), constant.nonzero().flatten()
    if not 0 < len(places) < n:
        return False
    if len(places) < n / 2 and (int(places[-1]) == len(places) - 1 or int(places[0]) == n - len(places)):
        return True
    return any(
        len(x) > 1
        and len(torch.unique(x[1:] - x[:-1])) == 1
        and int(x[1] - x[0]) > 1
        and int(x[0]) < int(x[1] - x[0])
        and n - int(x[-1]) <= int(x[1] - x[0])
        for x in (places, (~constant).nonzero().flatten())
    )


def _either(judge: Judge) -> Callable[[Sums, Known], Finding | None]:
    """A judge of one side, of both."""

    def judged(sums: Sums, known: Known) -> Finding | None:
        found = (judge(sums, side) for side in SIDES if f"{side} rows" in sums and int(of(sums, side, "rows")))
        return next((x for x in found if x is not None), None)

    return judged


def _nothing(sums: Sums, side: str) -> Finding | None:
    rows, constant = int(of(sums, side, "rows")), constant_layers(sums, side)
    zero, missing = of(sums, side, "zero"), of(sums, side, "missing")
    if not bool(constant.all()) or rows < 2:
        return None
    kind = "zero" if bool((zero == rows).all()) else "-1" if bool((missing == rows).all()) else "one and the same row"
    return Finding(
        fault="routes without content",
        evidence=f"all {rows} rows of the {side} are {kind} in {listed(constant)}.",
        questions=(
            "does the engine record routes at all, or was a buffer written that nothing filled?",
            "is a fused router in use, which returns before the routes are captured?",
        ),
    )


def _blank_layers(sums: Sums, side: str) -> Finding | None:
    constant = constant_layers(sums, side)
    if not constant.any() or constant.all() or int(of(sums, side, "rows")) < FEWEST_ROWS or _regular(constant):
        return None
    return Finding(
        fault="layers without routes",
        evidence=f"the rows of the {side} never change in {listed(constant)} of {len(constant)}, which stand neither "
        "first nor last nor at regular distances, as dense layers would.",
        questions=(
            "which layers of the model are MoE layers?",
            "do some layers use a router that the capture does not reach?",
        ),
    )


def _rows_of(kind: str, name: str, fault: str, causes: tuple[str, str]) -> Judge:
    def judge(sums: Sums, side: str) -> Finding | None:
        count, rows = of(sums, side, EACH + name), of(sums, side, EACH + "rows")
        if not int(count.sum()) or bool(constant_layers(sums, side).all()) or _short(sums, side):
            return None
        start = of(sums, side, EACH + "prefix")
        prefix = int(torch.minimum(start, count).sum())
        where = f", {prefix} of them at the start of a response" if prefix else ""
        return Finding(
            fault=fault,
            evidence=f"{int(count.sum())} of {int(rows.sum())} tokens that ran have rows of {kind} in the {side}{where}"
            f"; {int((count > 0).sum())} of {len(count)} responses have such.",
            questions=causes,
            place=first(count > 0),
        )

    return judge


def _short(sums: Sums, side: str) -> bool:
    """Whether what is missing is the last row of nearly every response, and nothing else."""
    short, gone = of(sums, side, EACH + "short"), of(sums, side, EACH + "missing") + of(sums, side, EACH + "zero")
    return bool(short.any()) and int(gone.sum()) == int(short.sum()) and int(short.sum()) >= SHORT * len(short)


def _one_short(sums: Sums, side: str) -> Finding | None:
    if not _short(sums, side):
        return None
    short = of(sums, side, EACH + "short")
    return Finding(
        fault="one row short",
        evidence=f"{int(short.sum())} of {len(short)} responses lack the row of the last token but one in the {side}, "
        "which produced the last token, and no other.",
        questions=(
            "does the engine leave out the row of its last forward pass?",
            "was an array of L - 1 rows cut once more?",
        ),
    )


def _broken(sums: Sums, side: str) -> Finding | None:
    count = of(sums, side, "broken")
    if not count.any():
        return None
    return Finding(
        fault="broken route rows",
        evidence=f"{int(count.sum())} rows of the {side} hold negative ids beside others, or below -1, in "
        f"{listed(count > 0)}.",
        questions=(
            "were unsigned ids read as signed ones?",
            "is a row cut or padded expert by expert?",
        ),
        place=first(of(sums, side, EACH + "broken")),
    )


def _ranged(sums: Sums, side: str) -> Finding | None:
    count, rows = of(sums, side, EACH + "ranges"), int(of(sums, side, "rows"))
    experts, width = int(of(sums, side, EACH + "most").max()) + 1, int(of(sums, side, EACH + "width")[0])
    chance = min(1.0, STEPS / max(experts, 1)) ** (width - 1)
    if not int(count.sum()) or tail(int(count.sum()), rows, chance) > LEVEL:
        return None
    return Finding(
        fault="rows that count up",
        evidence=f"{int(count.sum())} of {rows} tokens that ran have experts 0, 1, 2, ... through all "
        f"layers of the {side}: a fill, which every check of ranges and duplicates passes.",
        questions=(
            "is padding filled with a range of ids, and cut off in the wrong place?",
            "are routes of cached or masked tokens filled up?",
        ),
        place=first(count > 0),
    )


def _last_repeated(sums: Sums, side: str) -> Finding | None:
    last, fresh = of(sums, side, EACH + "last"), of(sums, side, EACH + "last fresh")
    hits, trials = int(last.sum()), int(fresh.sum())
    elsewhere = int(of(sums, side, EACH + "fresh").sum()) - trials
    others = int(of(sums, side, EACH + "repeated").sum()) - hits
    chance = min(1.0, (others + 21) / max(elsewhere, 1))  # none in n bounds the rate by 21 / n at a level of 1e-9
    if not hits or tail(hits, trials, chance) > LEVEL:
        return None
    return Finding(
        fault="last row repeated",
        evidence=f"{hits} of {trials} responses end with the row before in all layers of the {side}; elsewhere "
        f"{others} of {elsewhere} rows repeat.",
        questions=(
            "does the engine record one row less than the trainer asks for?",
            "is an array padded to its length by its last row?",
        ),
        place=first(last),
    )


def _repeated(sums: Sums, side: str) -> Finding | None:
    count, fresh = of(sums, side, EACH + "repeated"), of(sums, side, EACH + "fresh")
    hits = (count >= REPEATED * fresh) & (fresh >= FEWEST_ROWS)
    if int((~constant_layers(sums, side)).sum()) < 2 or not hits.any():
        return None
    return Finding(
        fault="rows repeated",
        evidence=f"in {int(hits.sum())} of {len(hits)} responses most rows of the {side} are those of the token "
        f"before, in all layers and for another token; {int(count.sum())} rows of {int(fresh.sum())} in all.",
        questions=(
            "is one row written for a whole response or block?",
            "is a buffer of the engine read before the next forward fills it?",
        ),
        place=first(hits),
    )


def _often(sums: Sums, side: str) -> Finding | None:
    n, common, others, chance = of(sums, side, "often").tolist()
    if common < FREQUENT or others < OFTEN * n or others < 10 * chance or constant_layers(sums, side).all():
        return None
    return Finding(
        fault="one row for many tokens",
        evidence=f"{int(common)} of {int(n)} tokens looked at have one and the same row in all layers of the {side}, "
        f"{int(others)} of them unlike the most frequent token among them: padding sent to fixed experts, or a router "
        "that has collapsed.",
        questions=(
            "which experts does the engine send padding tokens to?",
            "is the load on these experts as high in the engine's own statistics?",
        ),
    )


def _duplicated(sums: Sums, side: str) -> Finding | None:
    count = of(sums, side, "duplicates") * ~constant_layers(sums, side)  # of dense layers any fill will do
    if not count.any():
        return None
    return Finding(
        fault="duplicate experts in a row",
        evidence=f"{int(count.sum())} of {int(of(sums, side, 'looked at'))} rows looked at name an expert twice in "
        f"{listed(count > 0)} of the {side}.",
        questions=(
            "is a row padded with an expert that it has already?",
            "are ids clamped or taken modulo the experts?",
        ),
        place=first(of(sums, side, EACH + "duplicates")),
    )


def judge_range(sums: Sums, known: Known) -> Finding | None:
    """Any id of the known number of experts or more."""
    for side in SIDES:
        if known.experts is None or f"{side} rows" not in sums:
            continue
        most = of(sums, side, EACH + "most")
        hits = most >= known.experts
        if hits.any():
            return Finding(
                fault="expert ids out of range",
                evidence=f"{int(hits.sum())} of {len(hits)} responses have ids of the {side} up to {int(most.max())}; "
                f"the model has {known.experts} experts.",
                questions=(
                    "does the engine balance load with redundant experts, whose ids are physical?",
                    "is a shared expert counted among the routed ones?",
                ),
                place=first(hits),
            )
    return None


def _alike(sums: Sums, side: str) -> Finding | None:
    n, equal = int(of(sums, side, "sampled")), of(sums, side, "equal")
    varied = of(sums, side, "steady") < STEADY * n
    off = torch.triu(torch.ones_like(equal, dtype=torch.bool), diagonal=1)
    alike = (equal >= ALIKE * n) & varied[:, None] & varied[None] & off
    if n < FEWEST_ROWS * 3 or not alike.any():
        return None
    a, b = alike.nonzero()[0].tolist()
    return Finding(
        fault="identical layers",
        evidence=f"layers {a} and {b} of the {side} have the same rows at {int(equal[a, b])} of {n} tokens looked at; "
        f"{int(alike.sum())} pairs of layers do.",
        questions=(
            "does a layer of multi-token prediction receive the routes of a decoder layer?",
            "is one layer's buffer written for another?",
        ),
    )


def _detector(fault: str, judge: Judge, rule: str) -> Detector:
    return Detector(fault=fault, stage=4, needs=("routes",), measure=fill_sums, judge=_either(judge), rule=rule)


ENOUGH = f", of models with {WIDE} ids a token or more"
ZEROS = ("are rows of a cached prefix left at 0?", "does the trainer replay expert 0 there, or route live?")
GONE = ("are tokens of a cached prefix run without recording routes?", "does the trainer route live where rows are -1?")
DETECTORS = (
    _detector("routes without content", _nothing, "no row of any layer ever changes"),
    _detector(
        "layers without routes",
        _blank_layers,
        "rows of some layers never change, and these stand neither first nor last nor at regular distances",
    ),
    _detector("one row short", _one_short, f"only last rows are missing, in {SHORT:.0%} of the responses or more"),
    _detector(
        "rows of zeros", _rows_of("zero", "zero", "rows of zeros", ZEROS), "any token with zeros in all MoE layers"
    ),
    _detector("rows missing", _rows_of("-1", "missing", "rows missing", GONE), "any token with -1 in all MoE layers"),
    Detector(
        fault="expert ids out of range",
        stage=4,
        needs=("routes",),
        measure=fill_sums,
        judge=judge_range,
        rule="any id of the number of experts or more, where that is known",
    ),
    _detector("broken route rows", _broken, "any row with an id below 0 that is not -1 throughout"),
    _detector("duplicate experts in a row", _duplicated, f"any of up to {CHECKED} rows of a chunk"),
    _detector(
        "identical layers",
        _alike,
        f"two layers with the same rows at {ALIKE:.0%} or more of the tokens, the most frequent row of neither above "
        f"{STEADY:.0%}",
    ),
    _detector(
        "rows that count up",
        _ranged,
        f"tokens whose ids count up through all layers, more than (3 / E)^(layers x k - 1) of them "
        f"(Chernoff bound {LEVEL:g}){ENOUGH}",
    ),
    _detector(
        "last row repeated",
        _last_repeated,
        f"rows before the last token repeat the row before more often than rows elsewhere (Chernoff bound {LEVEL:g})"
        f"{ENOUGH}",
    ),
    _detector(
        "rows repeated",
        _repeated,
        f"{REPEATED:.0%} or more of {FEWEST_ROWS} rows of a response repeat the row before in all layers, "
        f"tokens differing{ENOUGH}",
    ),
    _detector(
        "one row for many tokens",
        _often,
        f"one row in all layers at {OFTEN:.0%} or more of up to {SAMPLED} tokens of a chunk that are not its most "
        f"frequent token, ten times what the layers give by themselves{ENOUGH}",
    ),
)
