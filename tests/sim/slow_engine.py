"""An engine of the simulator a second time: one member, one token, one expert at a time; and what it answers to.

Hashes, noise, forward, routing, replay, tasks and rewards, written from their formulas.
"""

import itertools
import math

import torch
from scipy.special import ndtri

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


def uniform(key):
    return ((mix(key) >> 12) + 0.5) / 2**52


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
            ids, gates, taken = self._route(list(logits), bias, given)
            if taken and self.constant is not None:
                gates = self.constant(tokens)[layer]
            out = torch.zeros(sim.width, dtype=torch.float64)
            for expert, gate in zip(ids, gates, strict=True):
                inner = seen @ w["up"][layer, expert]
                out = out + gate * ((inner / (1 + (-inner).exp())) @ w["down"][layer, expert])
            x = h + self._noisy(out, tokens, layer, 3, self.expert_noise)
            states.append(unit(x))
            experts.append(ids)
            weighed.append([gate if isinstance(gate, float) else gate.item() for gate in gates])
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
        ids, taken = (best(choice, sim.top_k), False) if given is None else self._ruled(given, choice)
        picked = [scores[i] for i in ids]
        if kind == "topk_softmax":
            return ids, softmax(picked), taken
        return ids, picked if kind == "top1" else [p / sum(picked) for p in picked], taken

    def _ruled(self, given, choice):
        """The experts that are used where some are given, by the scores of the live choice; and whether those given
        were looked at."""
        ranked = best(choice, len(choice))
        live, first_out = ranked[: self.sim.top_k], ranked[self.sim.top_k]
        if self.margin is not None and choice[live[-1]] - choice[first_out] >= self.margin:
            return live, False
        if not self.condition:
            return given, True
        strength = choice
        if self.sim.router == "topk_softmax":
            strength = [v.item() for v in softmax([torch.tensor(c, dtype=torch.float64) for c in choice])]
        weakest = strength[live[-1]]
        least = self.condition * weakest if weakest > 0 else weakest
        stay = [i for i in given if strength[i] >= least]
        others = [i for i in ranked if i not in stay]
        return (given if len(stay) == len(given) else stay + others[: len(given) - len(stay)]), True


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
    return [1 + int(uniform(combine(key, i)) * (sim.vocab - 1)) for i in range(sim.turn_length)]


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
