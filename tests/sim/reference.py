"""The simulator a second time: slow, plain, one member, one response, one token, one expert at a time.

It shares the initial weights and the prompts with the package and nothing else: tasks, forward, noise, routing, token
weights, group baselines and expectations are written from their formulas, and gradients are autograd's own.
"""

import itertools
import math

import torch
from scipy.special import ndtri

NAMES = ("embed", "mix_x", "mix_s", "router", "up", "down", "head")
WORD = (1 << 64) - 1


def mix(x):
    z = (x + 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def combine(key, part):
    return mix((3 * key + part) & WORD)


def normal(key):
    return float(ndtri(((mix(key) >> 11) + 0.5) / 2**53))


def prefix_key(tokens):
    key = mix(tokens[0])
    for token in tokens[1:]:
        key = combine(key, token)
    return key


def unit(x):
    return x / (sum(v * v for v in x) / len(x) + 1e-6).sqrt()


def softmax(values):
    top = max(v.item() for v in values)
    grown = [(v - top).exp() for v in values]
    return [g / sum(grown) for g in grown]


def best(values, count):
    return sorted(range(len(values)), key=lambda i: -values[i])[:count]


class Engine:
    """One policy. `replay` maps a tuple of tokens to the experts of every layer at its last token, and `gates` to their
    gate weights, which are constants then; `margin` and `condition` are the rule by which experts are used."""

    def __init__(self, sim, weights, numerics, member=0, replay=None, gates=None, margin=None, condition=0.0):
        self.sim, self.weights, self.replay, self.known, self.said = sim, weights, replay, {}, {}
        self.constant, self.margin, self.condition = gates, margin, condition
        noisy = numerics.kind == "noise"
        pick = [numerics.scale if s is None else s for s in (numerics.router_scale, numerics.expert_scale)]
        self.router_noise, self.expert_noise, self.head_noise = [*pick, numerics.head_scale] if noisy else [0.0] * 3
        self.seed = combine(mix(member), numerics.seed)

    def run(self, tokens):
        """(state of every layer, log-probs of the next token, experts, router log-probs, gates) after `tokens`."""
        if tokens not in self.known:
            self.known[tokens] = self._step(tokens)
        return self.known[tokens]

    def logps(self, prompt, response):
        return [self.run(context(self.sim, prompt, response[:t]))[1][token] for t, token in enumerate(response)]

    def plain(self, pair):
        """The log-probs of a (prompt, response) as Python numbers."""
        if pair not in self.said:
            self.said[pair] = [v.item() for v in self.logps(*pair)]
        return self.said[pair]

    def experts(self, tokens):
        return self.run(tokens)[2]

    def gates(self, tokens):
        return self.run(tokens)[4]

    def _step(self, tokens):
        w, sim = self.weights, self.sim
        x = w["embed"][tokens[-1]]
        zero = [torch.zeros(sim.width, dtype=torch.float64)] * sim.layers
        before = zero if len(tokens) == 1 else self.run(tokens[:-1])[0]
        states, experts, router_logps, weighed = [], [], [], []
        for layer in range(sim.layers):
            h = x + torch.tanh(x @ w["mix_x"][layer] + before[layer] @ w["mix_s"][layer])
            seen = unit(h)
            logits = self._noisy(seen @ w["router"][layer], tokens, layer, 0, self.router_noise)
            bias = w["bias"][layer] if "bias" in w else None
            given = None if self.replay is None else self.replay(tokens)[layer]
            ids, gates = self._route(list(logits), bias, given)
            if self.constant is not None:
                gates = self.constant(tokens)[layer]
            out = torch.zeros(sim.width, dtype=torch.float64)
            for expert, gate in zip(ids, gates, strict=True):
                inner = seen @ w["up"][layer, expert]
                out = out + gate * ((inner / (1 + (-inner).exp())) @ w["down"][layer, expert])
            x = h + self._noisy(out, tokens, layer, 3, self.expert_noise)
            states.append(unit(x))
            experts.append(ids)
            weighed.append([torch.as_tensor(gate).item() for gate in gates])
            router_logps.append([p.log().item() for p in softmax(list(logits))])
        logits = self._noisy(unit(x) @ w["head"], tokens, sim.layers, 4, self.head_noise) / sim.temperature
        logp = logits - max(logits.tolist())
        return states, logp - logp.exp().sum().log(), experts, router_logps, weighed

    def _noisy(self, x, tokens, layer, site, scale):
        if not scale:
            return x
        key = combine(combine(self.seed, prefix_key(tokens)), layer * 16 + site)
        size = (sum(v * v for v in x) / len(x)).sqrt()
        draws = torch.tensor([normal(combine(key, channel)) for channel in range(len(x))], dtype=torch.float64)
        return x + scale * size * draws

    def _route(self, logits, bias, given):
        sim, kind = self.sim, self.sim.router
        if kind in ("sigmoid_bias", "group_limited"):
            scores = [1 / (1 + (-v).exp()) for v in logits]
            choice = [s.item() + b.item() for s, b in zip(scores, bias, strict=True)]
        else:
            scores = logits if kind == "topk_softmax" else softmax(logits)
            choice = [s.item() for s in scores]
        if kind == "group_limited":
            size = sim.experts // sim.groups
            totals = [sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(sim.groups)]
            allowed = best(totals, sim.limited_groups)
            choice = [c if i // size in allowed else -math.inf for i, c in enumerate(choice)]
        ids = best(choice, sim.top_k) if given is None else self._ruled(given, choice)
        picked = [scores[i] for i in ids]
        if kind == "topk_softmax":
            return ids, softmax(picked)
        return ids, picked if kind == "top1" else [p / sum(picked) for p in picked]

    def _ruled(self, given, choice):
        """The experts that are used where some are given, by the scores of the live choice."""
        ranked = best(choice, len(choice))
        live, first_out = ranked[: self.sim.top_k], ranked[self.sim.top_k]
        if self.margin is not None and choice[live[-1]] - choice[first_out] >= self.margin:
            return live
        if not self.condition:
            return given
        strength = choice
        if self.sim.router == "topk_softmax":
            strength = [v.item() for v in softmax([torch.tensor(c, dtype=torch.float64) for c in choice])]
        weakest = strength[live[-1]]
        least = self.condition * weakest if weakest > 0 else weakest
        stay = [i for i in given if strength[i] >= least]
        others = [i for i in ranked if i not in stay]
        return given if len(stay) == len(given) else stay + others[: len(given) - len(stay)]


def responses(sim):
    """Every response: token 0 ends it, the horizon cuts it."""
    found = []
    for length in range(1, sim.horizon + 1):
        for body in itertools.product(range(1, sim.vocab), repeat=length - 1):
            last = range(sim.vocab) if length == sim.horizon else [0]
            found += [(*body, token) for token in last]
    return found


def reward(sim, prompt, response):
    if sim.truncated == "zero" and response[-1] != 0:
        return 0.0
    graded = sim.reward == "graded" or (sim.reward is None and sim.task != "sum")
    return TASKS[sim.task](sim, prompt, [token for token in response if token], graded)


def sum_reward(sim, prompt, words, graded):
    gap = (sum(words) - sum(prompt)) % sim.vocab
    return 1.0 - min(gap, sim.vocab - gap) / (sim.vocab // 2) if graded else float(gap == 0)


def program_reward(sim, prompt, words, graded):
    passed = 0
    for x in range(sim.vocab):
        register = x
        for word in words:
            register = register + 1 if word == 1 else register * word
        passed += (register - prompt[0] * x - sum(prompt[1:])) % sim.vocab == 0
    return passed / sim.vocab if graded else float(passed == sim.vocab)


def text_reward(sim, prompt, words, graded):
    reference = [1 if token == sim.vocab - 1 else token + 1 for token in prompt]
    f1 = 2 * common(words, reference) / (len(words) + len(reference))
    return f1 if graded else float(f1 == 1)


def common(a, b):
    """Length of the longest common subsequence, by trying every subsequence of `a`."""
    best = 0
    for keep in itertools.product([False, True], repeat=len(a)):
        left, place = [x for x, kept in zip(a, keep, strict=True) if kept], 0
        for x in b:
            place += place < len(left) and left[place] == x
        best = max(best, place if place == len(left) else 0)
    return best


def guess_reward(sim, prompt, words, graded):
    size, turns = sim.turn_length, sim.horizon // sim.turn_length
    for turn in range(turns):
        if words[turn * size : (turn + 1) * size] == hidden(sim, prompt):
            return 1 - turn / turns if graded else 1.0
    return 0.0


def hidden(sim, prompt):
    key = prefix_key(prompt)
    return [1 + int(((mix(combine(key, i)) >> 12) + 0.5) / 2**52 * (sim.vocab - 1)) for i in range(sim.turn_length)]


TASKS = {"sum": sum_reward, "program": program_reward, "text": text_reward, "guess": guess_reward}


def context(sim, prompt, said):
    """The tokens that the next one is sampled after: the prompt, what was said, and what the environment said to it."""
    tokens = tuple(prompt)
    for count, token in enumerate(said, start=1):
        tokens += (token,)
        if sim.task == "guess" and count % sim.turn_length == 0 and count < sim.horizon:
            guessed, number = list(said[count - sim.turn_length : count]), hidden(sim, prompt)
            tokens += (1 if number < guessed else 2 if number == guessed else 3,)
    return tokens


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


class Lab:
    """Both engines at θ_old and at θ under every replay mode, and every expectation over their responses."""

    def __init__(self, sim, weights, prompts, others):
        self.sim, self.prompts, self.responses, self.caps = sim, prompts, responses(sim), {}
        self.weights = leaves(moved(sim, weights, others))
        self.mu = Engine(sim, weights, sim.numerics)
        self.mu_theta = Engine(sim, self.weights, sim.numerics)
        live = Engine(sim, weights, sim.training_numerics)
        recorded = {"disabled": None, "R2": live.experts, "R3": self.mu.experts}
        self.old = {m: Engine(sim, weights, sim.training_numerics, replay=r) for m, r in recorded.items()}
        self.target = {m: Engine(sim, self.weights, sim.training_numerics, replay=r) for m, r in recorded.items()}
        self.pairs = [(x, y) for x in prompts for y in self.responses]
        self.reward = {(x, y): reward(sim, x, y) for x, y in self.pairs}
        self.chance = {p: math.exp(sum(self.mu.plain(p))) / len(prompts) for p in self.pairs}
        self.length = self.expect(lambda p: len(p[1]))

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
        target = self.target[recipe.router_replay.mode]
        total = 0.0
        for (prompt, response, a), chance in advantages.items():
            weight = self.token_weights(recipe, (prompt, response), a)
            total = total + chance * sum(
                w * logp for w, logp in zip(weight, target.logps(prompt, response), strict=True)
            )
        return slope(total - self.penalty(recipe), self.weights)

    def penalty(self, recipe):
        """E_μ of the loss of `[terms]` over whole responses, as it is published, for autograd to differentiate."""
        terms, mode, total = recipe.terms, recipe.router_replay.mode, torch.zeros((), dtype=torch.float64)
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
        mode, clip, c, judge = recipe.router_replay.mode, recipe.clip, recipe.correction, recipe.rejection
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
        mode, (above, below) = recipe.router_replay.mode, recipe.ratio.of.split("/")
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
