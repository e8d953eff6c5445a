"""Audits made up for tests of their page: a report with every kind of table, and views with routes of both engines."""

import math

import numpy as np

from firstorder.core.audit.finding import Finding
from firstorder.core.audit.report import Report, Verdict, View
from firstorder.core.audit.table import Column, Estimate, Table

NASTY = "</script><script>window.hurt = 1</script><!-- \u2028 \u202e <img src=x onerror='window.hurt=2'> & \" ' ]]>"
ODD = ("</script>", "<!--", "\u2028", "\u202eevil\u202c", "<b>bold</b>", "&lt;", "\n", "\t", "", "\x00", "\ud800")


def nested(routes):
    return tuple(tuple(map(tuple, token)) for token in routes.tolist())


def view(seed=0, tokens=80, layers=6, k=4, experts=32, first=40, spread=0.15, flipped=0.1, texts=None, **more):
    g = np.random.default_rng(seed)
    mu = -g.exponential(0.6, tokens) - 1e-3
    old = np.minimum(mu + spread * g.standard_t(2, tokens), -1e-6)
    mask = np.ones(tokens, bool)
    mask[tokens // 3 : tokens // 3 + 5] = False
    ours = g.random((tokens, layers, experts)).argsort(-1)[..., :k]
    other = g.random((tokens, layers)) < flipped
    spare = g.random((tokens, layers, experts)).argsort(-1)
    theirs = ours.copy()
    unused = (spare[..., None] != ours[..., None, :]).all(-1).argmax(-1)
    theirs[..., 0] = np.where(other, np.take_along_axis(spare, unused[..., None], -1)[..., 0], ours[..., 0])
    made = {
        "source": f"step_{seed % 3}/rank_0.jsonl line {seed + 1}",
        "step": seed % 3,
        "first": first,
        "why": ("largest |sum D|", "largest |D|", "most flips", "typical")[seed % 4],
        "tokens": tuple(g.integers(0, 151_936, tokens).tolist()),
        "mask": tuple(mask.tolist()),
        "logp_mu": tuple(mu.tolist()),
        "logp_old": tuple(old.tolist()),
        "routes": nested(ours),
        "routes_old": nested(theirs[..., ::-1]),
        "texts": texts,
    }
    return View(**(made | more))


def broken(seed=7):
    """One with tokens that no ratio can be made of."""
    whole = view(seed)
    old = list(whole.logp_old)
    old[3], old[5], old[8] = math.nan, -math.inf, 0.25
    return view(seed, logp_old=tuple(old), why="unusable tokens")


def estimates(seed, n, size=0.01):
    g = np.random.default_rng(seed)
    values = size * (1 + 0.5 * g.random(n))
    return [Estimate(value=float(v), low=float(v * 0.8), high=float(v * 1.2)) for v in values]


def along(name, title, what, places, seed, note=""):
    columns = (
        Column(key=what, title=what),
        Column(key="k3", title="k3 estimate of KL", unit="nats/token", formula="mean(e^D - D - 1)"),
        Column(key="size", title="mean |D|", unit="nats", formula="mean |D|"),
        Column(key="tokens", title="tokens", unit="tokens"),
    )
    pairs = zip(places, estimates(seed, len(places), 0.001), estimates(seed + 1, len(places)), strict=True)
    rows = tuple({what: place, "k3": a, "size": b, "tokens": 1000} for place, a, b in pairs)
    return Table(name=name, title=title, columns=columns, rows=rows, note=note)


def numbers():
    columns = (
        Column(key="quantity", title="quantity"),
        Column(key="value", title="value"),
        Column(key="formula", title="formula"),
    )
    rows = [("k1", Estimate(value=1.2e-3, low=9e-4, high=1.5e-3), "mean(-D)"), ("ESS", Estimate(value=0.31), "-")]
    keys = ("quantity", "value", "formula")
    return Table(
        name="numbers", title="Size", columns=columns, rows=tuple(dict(zip(keys, r, strict=True)) for r in rows)
    )


def tables():
    return (
        numbers(),
        along("by-position", "By position", "position", [2**i for i in range(12)], 1),
        along("by-decile", "By decile of p", "decile", [f"{i / 10:.1f}–{(i + 1) / 10:.1f}" for i in range(10)], 2),
        along("by-step", "By step", "step", [0, 1, 2], 3, note="A step is a batch of rollouts."),
        along("by-layer", "By layer", "layer", list(range(48)), 4),
        along("by-turn", "By turn", "turn", [0], 5),
    )


def report(views=None, fault="temperature", **more):
    finding = Finding(
        fault="temperature",
        evidence="D falls by 0.31 nats for every nat of log p [0.29, 0.33]; equal distributions have a slope of 0.",
        questions=("At which temperature does the engine sample?", "Are its log-probs processed or raw?"),
        where="step_1/rank_0.jsonl line 2",
    )
    made = {
        "format": "prime-rl token exports",
        "inferred": ("Position t holds token t; position 0 is not counted.", "Routes: 48 MoE layers of 8 experts."),
        "counts": {"files": 4, "steps": 3, "responses": 512, "tokens": 1_204_312, "unusable tokens": 12},
        "verdict": Verdict(
            fault=fault,
            paragraph="The rollout engine and the trainer differ by a temperature: D grows with log p, and nothing "
            "else does. Mean |D| is 0.21 nats [0.20, 0.22], ten times what bf16 alone leaves.",
            questions=finding.questions,
        ),
        "findings": (finding,),
        "silent": {"routes not replayed": ("routes", "routes_old")},
        "tables": tables(),
        "views": (*tuple(view(i) for i in range(6)), broken()) if views is None else views,
    }
    return Report(**(made | more))
