"""The terms of a loss once more, one number at a time, from the formulas of their sources: no tensor, no shared
function. What stands off the mask never enters."""

import math

LIMIT = 20.0
INF = {"inf": math.inf, "-inf": -math.inf}


def num(x):
    return INF.get(x, x) if isinstance(x, str) else x


def log_ratio(inputs, above, below, b, t):
    """Held within 20; that of a numerator of 0 is at the lower end."""
    p, q = (num(inputs[f"logp_{name}"][b][t]) for name in (above, below))
    return -LIMIT if p == -math.inf else max(-LIMIT, min(LIMIT, p - q))


def reference(inputs, estimator, b, t):
    """Value and derivative by log pi of one token of an estimator of KL(pi || ref)."""
    d, r = log_ratio(inputs, "theta", "ref", b, t), math.exp(log_ratio(inputs, "theta", "mu", b, t))
    k3 = math.expm1(-d) + d
    return {"k1": (d, 1.0), "k2": (d * d / 2, d), "k3": (k3, -math.expm1(-d)), "unbiased": (r * k3, r * d)}[estimator]


def squared(inputs, of, b, t):
    d = log_ratio(inputs, *of.split("/"), b, t)
    return d * d, 2 * d


def divisor(inputs, s, b):
    tokens = sum(inputs["mask"][b])
    every = sum(map(sum, inputs["mask"]))
    return {
        "token_sum": 1.0,
        "length": max(tokens, 1) ** s["aggregation.alpha"],
        "token_mean": every / len(inputs["mask"]),
        "constant": s["aggregation.constant"],
    }[s["aggregation.kind"]]


def outputs(inputs, s):
    """Value, weight and gradient of the term with these settings on a case."""
    size, width = len(inputs["mask"]), len(inputs["mask"][0])
    value, weight = ([[0.0] * width for _ in range(size)] for _ in range(2))
    for b, mask in enumerate(inputs["mask"]):
        for t in (t for t, on in enumerate(mask) if on):
            scored = num(inputs["logp_theta"][b][t]) > -math.inf
            if "terms.reference_estimator" in s:
                value[b][t], slope = reference(inputs, s["terms.reference_estimator"], b, t)
            elif "terms.squared_of" in s:
                value[b][t], slope = squared(inputs, s["terms.squared_of"], b, t)
            else:  # a bonus, whose gradient is that of the entropy and needs no sampled token
                value[b][t], slope, scored = inputs["entropy"][b][t], -1.0, True
            weight[b][t] = -slope / divisor(inputs, s, b) if scored else 0.0
    return {"value": value, "weight": weight, "gradient": [[-w / size for w in row] for row in weight]}
