"""The simulator a second time: slow, plain, one member, one response, one token, one expert at a time.

It shares the initial weights, the prompts and the reading of settings with the package and nothing else: token weights,
group baselines and expectations are written from their formulas here, engines and tasks in `slow_engine`, and gradients
are autograd's own.
"""

import itertools
import math

import torch
from slow_engine import Engine, combine, context, prefix_key, responses, reward, uniform
from slow_engine import common as common
from slow_engine import hidden as hidden

from firstorder.core.method.recipe import RouterReplay

NAMES = ("embed", "mix_x", "mix_s", "router", "up", "down", "head")


def leaves(weights):
    return {n: w.detach().clone().requires_grad_(n != "bias") for n, w in weights.items()}


def slope(scalar, weights):
    """Gradient of a scalar as one vector, in the order of the weights."""
    names = [n for n in NAMES if n in weights]
    grads = torch.autograd.grad(scalar, [weights[n] for n in names], retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(weights[n]) if g is None else g).flatten() for n, g in zip(names, grads, strict=True)]
    )


def objective(sim, engine, prompts):
    total = 0.0
    for prompt in prompts:
        for response in responses(sim):
            total = total + sum(engine.logps(prompt, response)).exp() * reward(sim, prompt, response)
    return total / len(prompts)


def moved(sim, weights, others):
    """θ after `sim.staleness` steps of plain gradient ascent on J of the live training engine on other prompts."""
    for _ in range(sim.staleness):
        at = leaves(weights)
        g = slope(objective(sim, Engine(sim, at, sim.training_numerics), others), at)
        start, after = 0, dict(weights)
        for name in NAMES:
            size = weights[name].numel()
            after[name] = weights[name] + sim.lr * g[start : start + size].view_as(weights[name])
            start += size
        weights = after
    return weights


class Targets(dict):
    """Engines by the spelling of their replay, made when they are asked for."""

    def __init__(self, make):
        self.make = make

    def __missing__(self, spelling):
        self[spelling] = self.make(RouterReplay.model_validate(spelling))
        return self[spelling]


class Lab:
    """Both engines at θ_old and at θ under every replay mode, and every expectation over their responses."""

    def __init__(self, sim, weights, prompts, others):
        self.sim, self.prompts, self.responses, self.caps = sim, prompts, responses(sim), {}
        self.weights = leaves(moved(sim, weights, others))
        self.mu = Engine(sim, weights, sim.numerics)
        self.mu_theta = Engine(sim, self.weights, sim.numerics)
        live = Engine(sim, weights, sim.training_numerics)
        self.old = Targets(lambda rule: live if rule.mode == "R2" else self.replaying(rule, weights, live))
        self.target = Targets(lambda rule: self.replaying(rule, self.weights, live))
        self.pairs = [(x, y) for x in prompts for y in self.responses]
        self.reward = {(x, y): reward(sim, x, y) for x, y in self.pairs}
        self.chance = {p: math.exp(sum(self.mu.plain(p))) / len(prompts) for p in self.pairs}
        self.length = self.expect(lambda p: len(p[1]))

    def replaying(self, rule, weights, live):
        """The training engine at some weights under a replay; `live` is π_old."""
        source = {"disabled": None, "R2": live, "R3": self.mu}[rule.mode]
        given = {"margin": rule.margin, "condition": rule.condition}
        if source is not None:
            given["replay"] = source.experts if rule.mode == "R2" else self.sent
            given["gates"] = source.gates if rule.gates == "replayed" else None
        return Engine(self.sim, weights, self.sim.training_numerics, **given)

    def sent(self, tokens):
        """The experts of μ_old that arrive, None in every layer where they are missing."""
        lost = len(tokens) <= self.sim.missing_prefix or uniform(combine(prefix_key(tokens), 5)) < self.sim.missing
        return [None] * self.sim.layers if lost else self.mu.experts(tokens)

    def expect(self, function):
        return sum(self.chance[p] * function(p) for p in self.pairs)

    def j(self, engine):
        return float(objective(self.sim, engine, self.prompts).detach())

    def gradient(self, mode):
        return slope(objective(self.sim, self.target[mode], self.prompts), self.weights)

    def rho(self, pair, mode):
        both = zip(self.target[mode].plain(pair), self.mu.plain(pair), strict=True)
        return [math.exp(a - b) for a, b in both]

    def values(self, mode):
        j, natural, mu = (self.j(e) for e in (self.target[mode], self.target["disabled"], self.mu))
        linear = self.expect(lambda p: self.reward[p] * sum(r - 1 for r in self.rho(p, mode)))
        return {
            "j_seq": j,
            "j_mu": mu,
            "j_mu_theta": self.j(self.mu_theta),
            "j_token": self.expect(lambda p: self.reward[p] * sum(self.rho(p, mode))),
            "value_error": abs(j - mu - linear),
            "replay_bias": natural - j,
        }

    def per_token(self, function):
        """μ-weighted mean over response tokens of a function of the prefix that the token follows."""
        total = self.expect(lambda p: sum(function(context(self.sim, p[0], p[1][:t])) for t in range(len(p[1]))))
        return total / self.length

    def kl(self, prefix, a, b):
        p, q = (e.run(prefix)[1].tolist() for e in (a, b))
        return sum(math.exp(u) * (u - v) for u, v in zip(p, q, strict=True))

    def flipped(self, prefix):
        pair = zip(self.old["disabled"].experts(prefix), self.mu.experts(prefix), strict=True)
        return [set(a) != set(b) for a, b in pair]

    def routes(self, mode):
        def entropy(prefix):
            return -sum(math.exp(v) * v for v in self.target[mode].run(prefix)[1].tolist())

        return {
            "kl_mu_old": self.per_token(lambda c: self.kl(c, self.mu, self.old["disabled"])),
            "kl_mu_old_replayed": self.per_token(lambda c: self.kl(c, self.mu, self.old[mode])),
            "entropy": self.per_token(entropy),
            "flip_rate": self.per_token(lambda c: sum(self.flipped(c)) / self.sim.layers),
            "tokens_flipped": self.per_token(lambda c: float(any(self.flipped(c)))),
            "mean_length": self.length,
        }

    def advantages(self, rule, size):
        """{(prompt, response, advantage): chance of meeting it in a slot of a group}, over all groups."""
        scaled = self.scale(rule, size)
        return {(x, y, scaled(a)): chance for (x, y, a), chance in self.unscaled(rule, size).items()}

    def scale(self, rule, size):
        """What ever larger batches make of an advantage, or of those of a response's tokens."""
        shift, spread = 0.0, 1.0
        if rule.scale == "batch_std":
            mean = self.expect(lambda p: self.reward[p])
            spread = math.sqrt(self.expect(lambda p: (self.reward[p] - mean) ** 2)) + 1e-6
        elif rule.scale == "whiten":
            found = self.unscaled(rule, size).items()
            each = [(m, b) for (_, y, a), m in found for b in (a if isinstance(a, tuple) else (a,) * len(y))]
            count = sum(m for m, _ in each)
            shift = sum(m * b for m, b in each) / count
            spread = math.sqrt(sum(m * (b - shift) ** 2 for m, b in each) / count + 1e-8)

        def scaled(a):
            return tuple(map(scaled, a)) if isinstance(a, tuple) else (a - shift) / spread

        return scaled

    def unscaled(self, rule, size):
        """The same before any scale of the batch."""
        if rule.baseline == "value":
            return {(*pair, self.gae(pair, rule.gae_lambda)): chance for pair, chance in self.chance.items()}
        found = {}
        for prompt in self.prompts:
            for group in itertools.product(self.responses, repeat=size):
                chance = math.prod(self.chance[prompt, y] * len(self.prompts) for y in group) / len(self.prompts)
                earned = group_advantage([self.reward[prompt, y] for y in group], rule)
                for response, a in zip(group, earned, strict=True):
                    key = (prompt, response, round(a, 13))
                    found[key] = found.get(key, 0.0) + chance / size
        return found

    def value(self, prompt, prefix):
        """E[R] of the rollout policy over the responses that go on from a prefix."""
        on = [(p, c) for p, c in self.chance.items() if p[0] == prompt and p[1][: len(prefix)] == prefix]
        return sum(c * self.reward[p] for p, c in on) / sum(c for _, c in on)

    def gae(self, pair, lam):
        """The advantage of every token of a (prompt, response) under a perfect critic."""
        prompt, response = pair
        values = [self.value(prompt, response[:t]) for t in range(len(response))] + [self.reward[pair]]
        residuals = [after - before for before, after in itertools.pairwise(values)]
        return tuple(sum(lam**i * d for i, d in enumerate(residuals[t:])) for t in range(len(response)))

    def token_weights(self, recipe, pair, a):
        """w_t for an advantage of the response, or a tuple with one for each token."""
        each = a if isinstance(a, tuple) else (a,) * len(pair[1])
        return [a_t * w for a_t, w in zip(each, self._factors(recipe, pair, each), strict=True)]

    def update(self, recipe, advantages):
        """E[Σ_t w_t ∇ log π_θ(y_t)], advantages from the method of that name."""
        target = self.target[str(recipe.router_replay)]
        total = 0.0
        for (prompt, response, a), chance in advantages.items():
            weight = self.token_weights(recipe, (prompt, response), a)
            total = total + chance * sum(
                w * logp for w, logp in zip(weight, target.logps(prompt, response), strict=True)
            )
        return slope(total - self.penalty(recipe), self.weights)

    def penalty(self, recipe):
        """E_μ of the loss of `[terms]` over whole responses, as it is published, for autograd to differentiate."""
        terms, mode, total = recipe.terms, str(recipe.router_replay), torch.zeros((), dtype=torch.float64)
        for pair, chance in self.chance.items():
            theta, spread = self.target[mode].logps(*pair), []
            old, mu = self.old[mode].plain(pair), self.mu.plain(pair)
            for t in range(len(theta)):
                every = self.target[mode].run(context(self.sim, pair[0], pair[1][:t]))[1]
                base = self.old[mode].run(context(self.sim, pair[0], pair[1][:t]))[1].detach()  # π_ref is π_old here
                d = theta[t] - old[t]
                kl = {
                    "k1": d,
                    "k2": d**2 / 2,
                    "k3": (-d).exp() - 1 + d,
                    "unbiased": (theta[t] - mu[t]).exp() * ((-d).exp() - 1 + d),
                    "full": sum(a.exp() * (a - b) for a, b in zip(every, base, strict=True)),
                }[terms.reference_estimator]
                r = theta[t] - (mu if terms.squared_of == "theta/mu" else old)[t]
                entropy = -sum(a.exp() * a for a in every)
                spread.append(terms.reference_kl * kl + terms.squared_log_ratio * r**2 - terms.entropy * entropy)
            total = total + chance * sum(spread) / self.norm(recipe, len(theta))
        return total

    def norm(self, recipe, length):
        rule = recipe.aggregation
        return {
            "token_sum": 1.0,
            "length": length**rule.alpha,
            "token_mean": self.length,
            "constant": rule.constant,
        }[rule.kind]

    def _factors(self, recipe, pair, each):
        mode, clip, c, judge = str(recipe.router_replay), recipe.clip, recipe.correction, recipe.rejection
        theta, old, mu = (e.plain(pair) for e in (self.target[mode], self.old[mode], self.mu))
        logs = {"theta": theta, "old": old, "mu": mu}
        length = len(theta)

        def spanned(of, span, steps=1):
            above, below = of.split("/")
            r = [math.exp(u - v) for u, v in zip(logs[above], logs[below], strict=True)]
            turn = self.sim.turn_length if self.sim.task == "guess" else length
            return [span_ratio(r, t, span, steps, turn) for t in range(length)]

        rule = recipe.ratio
        ratio = [1.0] * length if rule.of == "none" else spanned(rule.of, rule.span, rule.steps)
        if rule.router_floor is not None:
            shifts = [self.router_shift(context(self.sim, pair[0], pair[1][:t]), mode) for t in range(length)]
            ratio = [r * max(rule.router_floor, math.exp(-shift)) for r, shift in zip(ratio, shifts, strict=True)]
        moved = spanned("theta/old", "token")
        factors = []
        for t in range(length):
            p, q, a = math.exp(theta[t]), math.exp(mu[t]), each[t]
            w = ratio[t]
            if clip.kind == "minirl":
                w *= not (a > 0 and moved[t] > 1 + clip.high) and not (a < 0 and moved[t] < 1 - clip.low)
            elif clip.kind in ("ppo", "gspo"):
                w *= not (a > 0 and w > 1 + clip.high) and not (a < 0 and w < 1 - clip.low)
            elif clip.kind == "dual":
                w *= not (a > 0 and w > 1 + clip.high) and not (a < 0 and (w < 1 - clip.low or w > clip.cap))
            elif clip.kind == "sapo":
                tau = clip.temperature[0 if a > 0 else 1]
                gate = 1 / (1 + math.exp(-tau * (w - 1)))
                w *= 4 * gate * (1 - gate)
            elif clip.kind == "cispo":
                w = min(max(w, 1 - clip.low), 1 + clip.high)
            elif clip.kind == "tv":
                w *= not (abs(p - q) > clip.high and ((a > 0 and p > q) or (a < 0 and p < q)))
            elif clip.kind == "kl":
                far = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)) > clip.high
                w *= not (far and ((a > 0 and p > q) or (a < 0 and p < q)))
            elif clip.kind == "m2po":
                tau = self.cap(recipe)
                high, low = max(1 + clip.high, math.exp(tau)), min(1 - clip.low, math.exp(-tau))
                w *= not (a > 0 and w > high) and not (a < 0 and w < low)
            elif clip.kind == "ctpo":
                root = math.sqrt(t + 1)
                above, below = math.log(w) > clip.high * root, math.log(w) < -clip.low * root
                w *= not (a > 0 and above) and not (a < 0 and (above or below))
            elif clip.kind == "gmpo":
                held = [
                    min(math.log(x), clip.high) if b > 0 else max(math.log(x), -clip.low)
                    for x, b in zip(ratio, each, strict=True)
                ]
                dropped = (a > 0 and math.log(w) > clip.high) or (a < 0 and math.log(w) < -clip.low)
                w = 0.0 if dropped else math.exp(sum(held) / length)
            if c.kind in ("ratio", "truncate", "mask"):
                k = spanned(c.of, c.span)[t]
                w *= {"ratio": k, "truncate": max(c.low, min(k, c.high)), "mask": k * (c.low <= k <= c.high)}[c.kind]
            elif c.kind == "vespo":
                whole = spanned(c.of, "sequence")[t]
                one, two = c.positive if a > 0 else c.negative
                w *= whole**one * math.exp(two * (1 - whole))
            if c.mean_one:
                w /= self.mean_factor(c, mode)
            if judge.kind != "none" and (a < 0 or judge.where == "always"):
                w *= judge.low <= self.judged(judge, pair, mode, logs, t) <= judge.high
            factors.append(w / self.norm(recipe, length))
        return factors

    def mean_factor(self, c, mode):
        """E of a truncated token ratio over response tokens."""
        above, below = c.of.split("/")
        engines = {"theta": self.target[mode], "old": self.old[mode], "mu": self.mu}

        def total(pair):
            pairs = zip(engines[above].plain(pair), engines[below].plain(pair), strict=True)
            return sum(max(c.low, min(math.exp(u - v), c.high)) for u, v in pairs)

        return self.expect(total) / self.length

    def judged(self, judge, pair, mode, logs, t):
        """What a rejection compares with its bounds at token t."""
        above, below = judge.of.split("/")
        d = [u - v for u, v in zip(logs[above], logs[below], strict=True)]
        if judge.kind == "kl":
            prefixes = [context(self.sim, pair[0], pair[1][:s]) for s in range(len(d))]
            each = [self.kl(prefix, self.mu, self.target[mode]) for prefix in prefixes]
        else:
            of = {
                "ratio": lambda x: x,
                "k1": lambda x: -x,
                "k2": lambda x: x * x / 2,
                "k3": lambda x: math.exp(x) - 1 - x,
            }
            each = [of[judge.kind](x) for x in d]
        v = {"token": each[t], "sum": sum(each), "mean": sum(each) / len(each), "max": max(each)}[judge.over]
        return math.exp(v) if judge.kind == "ratio" else v

    def cap(self, recipe):
        """τ of M2PO over every group that can be met: the cap on |log r| of harmful tokens, by halving."""
        key = recipe.model_dump_json()
        if key not in self.caps:
            self.caps[key] = self._cap(recipe)
        return self.caps[key]

    def _cap(self, recipe):
        mode, (above, below) = str(recipe.router_replay), recipe.ratio.of.split("/")
        harmful = []
        for (prompt, response, a), chance in self.advantages(recipe.advantage, recipe.schedule.group_size).items():
            each = a if isinstance(a, tuple) else (a,) * len(response)
            logs = {"theta": self.target[mode], "old": self.old[mode], "mu": self.mu}
            rows = (logs[name].plain((prompt, response)) for name in (above, below))
            for u, v, b in zip(*rows, each, strict=True):
                if b * (u - v) > 0:
                    harmful.append((chance, (u - v) ** 2))
        count = sum(m for m, _ in harmful)
        if sum(m * v for m, v in harmful) <= recipe.clip.budget * count:
            return math.inf
        low, high = 0.0, max(v for _, v in harmful)
        for _ in range(100):
            mid = (low + high) / 2
            low, high = (
                (mid, high) if sum(m * min(v, mid) for m, v in harmful) < recipe.clip.budget * count else (low, mid)
            )
        return math.sqrt(high)

    def router_shift(self, prefix, mode):
        new, old = (e.run(prefix) for e in (self.target[mode], self.old[mode]))
        used = [(layer, i) for layer, ids in enumerate(self.old[mode].experts(prefix)) for i in ids]
        shifts = [abs(new[3][layer][i] - old[3][layer][i]) for layer, i in used]
        return sum(shifts) / len(shifts)


def span_ratio(r, t, span, steps, turn):
    if span == "token":
        return r[t]
    if span == "prefix":
        return math.prod(r[: t + 1])
    if span == "sequence":
        return math.prod(r)
    if span == "geometric":
        return math.prod(r) ** (1 / len(r))
    if span in ("turn", "turn_geometric"):
        own = r[t // turn * turn : (t // turn + 1) * turn]
        return math.prod(own) ** (1 / len(own) if span == "turn_geometric" else 1)
    if span == "forward":
        return math.prod(r[t : t + steps])
    return r[t] * min(r[:t], default=1.0)


def group_advantage(rewards, rule):
    size, mean = len(rewards), sum(rewards) / len(rewards)
    if rule.baseline == "none":
        return list(rewards)
    if len(set(rewards)) == 1:
        return [0.0] * size
    centred = [r - mean for r in rewards]
    if rule.baseline == "leave_one_out":
        centred = [r - (sum(rewards) - r) / (size - 1) for r in rewards]
    spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (size - 1)) + 1e-6
    return [c / spread for c in centred] if rule.std else centred
