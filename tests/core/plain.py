"""The methods once more, one number at a time, from the formulas of their sources: no tensor, no shared function.

A response is the list of its response tokens; what stands off the mask never enters it. `math.fsum` rounds a sum once.
"""

import math

LIMIT = math.exp(20.0)
INF = {"inf": math.inf, "-inf": -math.inf}


def num(x):
    return INF.get(x, x) if isinstance(x, str) else x


def responses(inputs):
    """Each response as a dict of lists over its tokens."""
    for b, mask in enumerate(inputs["mask"]):
        at = [t for t, on in enumerate(mask) if on]
        a = inputs["advantage"][b]
        names = ("logp_theta", "logp_old", "logp_mu", "logp_ref", "entropy", "kl_mu", "router_shift")
        yield {
            "at": at,
            "runs": runs(mask),
            "width": len(mask),
            "A": [a[t] if isinstance(a, list) else a for t in at],
            "R": inputs["rewards"][b],
            **{name.removeprefix("logp_"): [num(inputs[name][b][t]) for t in at] for name in names},
        }


def runs(mask):
    """The turns of a response: of each, the ranks of its tokens among the response's."""
    found, rank = [], 0
    for t, on in enumerate(mask):
        if on and (not t or not mask[t - 1]):
            found.append([])
        if on:
            found[-1].append(rank)
            rank += 1
    return found


def exp(x):
    return math.exp(x) if x < 700 else math.inf


def held(x):
    return min(exp(x), LIMIT)


def logs(y, of):
    """log of a ratio of two policies, token by token."""
    above, below = of.split("/")
    return [p - q for p, q in zip(y[above], y[below], strict=True)]


def span(d, kind, steps=1, turns=()):
    """log of a product over tokens."""
    n = len(d)
    if kind == "token" or not n:
        return d
    if kind == "prefix":
        return [math.fsum(d[: t + 1]) for t in range(n)]
    if kind == "sequence":
        return [math.fsum(d)] * n
    if kind == "geometric":
        return [math.fsum(d) / n] * n
    if kind in ("turn", "turn_geometric"):
        sums = {t: math.fsum(d[s] for s in run) / (len(run) if kind != "turn" else 1) for run in turns for t in run}
        return [sums[t] for t in range(n)]
    if kind == "forward":
        return [math.fsum(d[t : t + steps]) for t in range(n)]
    assert kind == "min_prefix"
    return [d[t] + (min(d[:t]) if t else 0.0) for t in range(n)]


def ratio(y, s):
    """The ratio of [ratio], with the router shift."""
    if s["ratio.of"] == "none":
        return [1.0] * len(y["at"])
    r = [held(x) for x in span(logs(y, s["ratio.of"]), s["ratio.span"], s["ratio.steps"], y["runs"])]
    floor = s["ratio.router_floor"]
    return r if floor is None else [x * max(floor, math.exp(-d)) for x, d in zip(r, y["router_shift"], strict=True)]


def bernoulli(log_q, log_p):
    q, p = math.exp(log_q), math.exp(log_p)
    if p == 0.0:
        return math.inf
    return q * (log_q - log_p) + (1 - q) * math.log((1 - q) / (1 - p))


def dropped(y, far):
    """Tokens that a sign-aware mask drops; far is (+1 above, -1 below, 0 inside) of each."""
    return [(a > 0 and f > 0) or (a < 0 and f < 0) for a, f in zip(y["A"], far, strict=True)]


def gate(x):
    """4 times a logistic function times what it is short of 1."""
    small = math.exp(-abs(x))
    return 4 * small / (1 + small) ** 2


def outside(x, low, high):
    return 1 if x > high else -1 if x < low else 0


def clipped(y, r, s, tau):
    """The clipped ratio of a response."""
    kind, low, high = s["clip.kind"], s["clip.low"], s["clip.high"]
    if kind == "none":
        return r
    if kind == "cispo":
        return [min(max(x, 1 - low), 1 + high) for x in r]
    if kind == "sapo":
        tau = [s["clip.temperature"][a <= 0] for a in y["A"]]
        return [x * gate(t * (x - 1)) for x, t in zip(r, tau, strict=True)]
    if kind == "gmpo":
        log = [math.log(x) if x > 0 else -math.inf for x in r]
        kept = [min(x, high) if a > 0 else max(x, -low) if a < 0 else x for x, a in zip(log, y["A"], strict=True)]
        mean = exp(math.fsum(kept) / len(kept)) if kept else 0.0
        gone = dropped(y, [outside(x, -low, high) for x in log])
        return [0.0 if g else mean for g in gone]
    if kind == "minirl":
        far = [outside(exp(x), 1 - low, 1 + high) for x in logs(y, "theta/old")]
    elif kind in ("ppo", "gspo"):
        far = [outside(x, 1 - low, 1 + high) for x in r]
    elif kind == "dual":
        bounds = [s["clip.cap"] if a < 0 else 1 + high for a in y["A"]]
        far = [outside(x, 1 - low, top) for x, top in zip(r, bounds, strict=True)]
        far = [-1 if a < 0 and f else f for a, f in zip(y["A"], far, strict=True)]
    elif kind == "tv":
        gap = [math.exp(p) - math.exp(q) for p, q in zip(y["theta"], y["mu"], strict=True)]
        far = [outside(x, -high, high) for x in gap]
    elif kind == "kl":
        pairs = list(zip(y["theta"], y["mu"], strict=True))
        far = [(1 if p > q else -1) * (bernoulli(q, p) > high) for p, q in pairs]
    elif kind == "m2po":
        far = [outside(x, min(1 - low, math.exp(-tau)), max(1 + high, exp(tau))) for x in r]
    else:
        assert kind == "ctpo"
        far = [outside(x, exp(-low * math.sqrt(t)), exp(high * math.sqrt(t))) for t, x in enumerate(r, start=1)]
        far = [1 if a > 0 and f > 0 else -1 if f else 0 for a, f in zip(y["A"], far, strict=True)]
    return [0.0 if g else x for g, x in zip(dropped(y, far), r, strict=True)]


def threshold(batch, ratios, budget):
    """tau of M2PO, by bisection: the mean over harmful tokens of min(log^2 r, tau^2) is the budget."""
    harmful = [
        math.log(x) ** 2 if x > 0 else math.inf
        for y, r in zip(batch, ratios, strict=True)
        for a, x in zip(y["A"], r, strict=True)
        if (a > 0 and x > 1) or (a < 0 and x < 1)
    ]
    if math.fsum(harmful) <= budget * len(harmful):
        return math.inf
    low, high = 0.0, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        if math.fsum(min(v, middle**2) for v in harmful) > budget * len(harmful):
            high = middle
        else:
            low = middle
    return low


def correction(y, s):
    """The correction factor of every token of a response."""
    kind, low, high = s["correction.kind"], num(s["correction.low"]), num(s["correction.high"])
    n = len(y["at"])
    if kind == "none" or not n:
        return [1.0] * n
    d = logs(y, s["correction.of"])
    if kind == "vespo":
        log_w = math.fsum(d)
        pairs = [s["correction.positive"] if a > 0 else s["correction.negative"] for a in y["A"]]
        return [held(c1 * log_w + c2 * (1 - exp(log_w))) for c1, c2 in pairs]
    k = span(d, s["correction.span"], turns=y["runs"])
    if kind == "ratio":
        return [held(x) for x in k]
    if kind == "truncate":
        return [max(low, min(held(x), high)) for x in k]
    assert kind == "mask"
    return [held(x) if low <= exp(x) <= high else 0.0 for x in k]


def judged(y, s):
    """What a rejection says of every token of a response: 1 if it stays, else 0."""
    kind, low, high = s["rejection.kind"], num(s["rejection.low"]), num(s["rejection.high"])
    n = len(y["at"])
    if kind == "none" or not n:
        return [1.0] * n
    d = logs(y, s["rejection.of"])
    v = {
        "ratio": d,
        "k1": [-x for x in d],
        "k2": [x * x / 2 for x in d],
        "k3": [math.expm1(x) - x if x < 700 else math.inf for x in d],
        "kl": y["kl_mu"],
    }[kind]
    if s["rejection.over"] != "token":
        v = [{"sum": math.fsum, "mean": lambda x: math.fsum(x) / n, "max": max}[s["rejection.over"]](v)] * n
    if kind == "ratio":
        v = [exp(x) for x in v]
    minded = [a < 0 or s["rejection.where"] == "always" for a in y["A"]]
    return [float(low <= x <= high or not m) for x, m in zip(v, minded, strict=True)]


def norm(y, batch, s):
    kind, tokens = s["aggregation.kind"], sum(len(each["at"]) for each in batch)
    return (
        mean_factor(batch, s)
        * {
            "token_sum": 1.0,
            "length": max(len(y["at"]), 1) ** s["aggregation.alpha"],
            "token_mean": tokens / len(batch),
            "constant": s["aggregation.constant"],
        }[kind]
    )


def mean_factor(batch, s):
    """The mean of the correction over tokens, or over responses where each has one; 1 if it is not divided by."""
    if not s["correction.mean_one"]:
        return 1.0
    rows = [correction(y, s) for y in batch if y["at"]]
    each = (
        [row[0] for row in rows]
        if s["correction.span"] in ("sequence", "geometric")
        else [k for row in rows for k in row]
    )
    found = math.fsum(each) / len(each)
    return found if found > 1e-8 else 1.0


def outputs(inputs, s):
    """Weight, gradient, loss and receipts of a method on a case."""
    batch = list(responses(inputs))
    ratios = [ratio(y, s) for y in batch]
    tau = threshold(batch, ratios, s["clip.budget"]) if s["clip.kind"] == "m2po" else math.inf
    weight, terms, made = [], [], []
    for y, r in zip(batch, ratios, strict=True):
        c, k, j = clipped(y, r, s, tau), correction(y, s), judged(y, s)
        row = [0.0] * y["width"]
        for i, t in enumerate(y["at"]):
            if y["theta"][i] > -math.inf:
                row[t] = y["A"][i] * min(c[i] * k[i], LIMIT) * j[i] / norm(y, batch, s)
                terms.append(row[t] * y["theta"][i])
        weight.append(row)
        made += list(zip(y["A"], r, c, k, j, strict=True))
    size = len(batch)
    return {
        "weight": weight,
        "gradient": [[-w / size for w in row] for row in weight],
        "loss": -math.fsum(terms) / size,
        "receipts": receipts(made, batch, s),
    }


def receipts(made, batch, s):
    """How many tokens each part acted on, of how many."""
    tokens, high = len(made), num(s["correction.high"])
    truncates = s["correction.kind"] == "truncate"
    # geometric means give every token of a response one ratio: what was clipped is what was dropped
    changed = [z == 0 if s["clip.kind"] == "gmpo" else z != x for _, x, z, _, _ in made]
    bounds = {high} | ({num(s["correction.low"])} - {0.0})
    counted = {
        "clip_upper": sum(one and a > 0 for one, (a, *_) in zip(changed, made, strict=True)),
        "clip_lower": sum(one and a < 0 for one, (a, *_) in zip(changed, made, strict=True)),
        "truncated": sum(truncates and f in bounds for *_, f, _ in made),
        "masked": sum(f * j == 0 for *_, f, j in made),
        "corrected": sum(f * j != 1 for *_, f, j in made),
        "ratio_not_one": sum(x != 1 for _, x, *_ in made),
        "saturated": sum(x >= LIMIT or f >= LIMIT or z * f >= LIMIT for _, x, z, f, _ in made),
    }
    found = {name: [count, tokens] for name, count in counted.items()}
    if s["correction.span"] in ("sequence", "geometric"):
        some = [y for y in batch if y["at"]]
        cut = [y for y in some if truncates and correction(y, s)[0] in bounds]
        found["truncated"] = [len(cut), len(some)]
    return found


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def std(values, less):
    m = mean(values)
    return math.sqrt(math.fsum((x - m) ** 2 for x in values) / (len(values) - less)) if len(values) > less else 0.0


def metrics(inputs):
    """The quantities of a batch, each from its formula."""
    batch = [y for y in responses(inputs) if y["at"]]
    tokens = [(p, q) for y in batch for p, q in zip(y["old"], y["mu"], strict=True)]
    d = [p - q for p, q in tokens]
    rho = [math.exp(x) for x in d]
    cut = [min(x, 2.0) for x in rho]
    total = [math.fsum(logs(y, "old/mu")) for y in batch]
    w = [math.exp(x) for x in total]
    gap = [abs(math.exp(p) - math.exp(q)) for p, q in tokens]
    signed = [(a, -x) for y in batch for a, x in zip(y["A"], logs(y, "old/mu"), strict=True)]
    p, q = ([math.exp(pair[i]) for pair in tokens] for i in range(2))
    spread = std(p, 0) * std(q, 0)
    found = {
        "kl": -mean(d),
        "k3_kl": mean(math.expm1(x) - x for x in d),
        "chi2_token": mean(math.exp(2 * max(-20, min(20, x))) for x in d) - 1,
        "chi2_seq": mean(math.exp(2 * max(-20, min(20, x))) for x in total) - 1,
        "token_eff_sample_size": mean(rho) ** 2 / mean(x * x for x in rho),
        "rollout_is_eff_sample_size": mean(cut) ** 2 / mean(x * x for x in cut),
        "seq_eff_sample_size": mean(w) ** 2 / mean(x * x for x in w),
        "training_ppl": mean(math.exp(-mean(y["old"])) for y in batch),
        "rollout_ppl": mean(math.exp(-mean(y["mu"])) for y in batch),
        "ppl_ratio": mean(math.exp(-mean(logs(y, "old/mu"))) for y in batch),
        "rollout_probs_diff_mean": mean(gap),
        "rollout_probs_diff_std": std(gap, 1),
        "token_mult_prob_error": mean(math.exp(abs(x)) for x in d),
        "ratio_tail_2": mean(float(max(x, 1 / x) > 2) for x in rho),
        "ratio_tail_5": mean(float(max(x, 1 / x) > 5) for x in rho),
        "seq_log_ratio_std": std(total, 0),
        "response_length": mean(len(y["at"]) for y in batch),
        "reward_pi": math.fsum(x * y["R"] for x, y in zip(w, batch, strict=True)) / math.fsum(w),
        "second_order_remainder": mean(y["R"] * pairs([math.expm1(x) for x in logs(y, "old/mu")]) for y in batch),
        "kl_failing": part([x for a, x in signed if a < 0]),
        "kl_succeeding": part([x for a, x in signed if a > 0]),
    }
    if spread > 1e-12:
        found["rollout_actor_probs_pearson_corr"] = (
            mean((x - mean(p)) * (z - mean(q)) for x, z in zip(p, q, strict=True)) / spread
        )
    return found


def pairs(delta):
    """The sum over pairs i < j."""
    return math.fsum(x * z for i, x in enumerate(delta) for z in delta[:i])


def part(values):
    return mean(values) if values else 0.0


def advantages(group, baseline, scaled):
    """The advantages of one group of rewards."""
    n = len(group)
    base = {
        "none": [0.0] * n,
        "group_mean": [mean(group)] * n,
        "leave_one_out": [mean(group[:i] + group[i + 1 :]) if n > 1 else 0.0 for i in range(n)],
    }[baseline]
    agree = baseline != "none" and len(set(group)) == 1
    centred = [0.0 if agree else r - b for r, b in zip(group, base, strict=True)]
    return [x / (std(group, 1) + 1e-6) for x in centred] if scaled else centred


def whitened(rows, tokens):
    """Advantages, one a response, less their mean over tokens, over their standard deviation over tokens."""
    each = [a for a, n in zip(rows, tokens, strict=True) for _ in range(n)]
    spread = math.sqrt(std(each, 1) ** 2 + 1e-8)
    return [(a - mean(each)) / spread for a in rows]


def gae(values, mask, reward, lam):
    """The definition: sum over l of lam^l d_{t+l}, of the values of response tokens."""
    at = [t for t, on in enumerate(mask) if on]
    v = [values[t] for t in at]
    d = [after - here for here, after in zip(v, [*v[1:], reward], strict=True)]
    row = [0.0] * len(mask)
    for i, t in enumerate(at):
        row[t] = math.fsum(lam**j * x for j, x in enumerate(d[i:]))
    return row
