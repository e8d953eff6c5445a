"""The sums of a graph a second time: slow, one step, one context and one token at a time, in plain Python numbers.

It shares nothing with the package: a table is lists, a kernel is `kernel[context][token]`.
"""

import itertools
import math


class Table:
    """`start` `[X]`, `follow` `[S][V]`, `rewards` `[S + E]`: contexts come first, endings after them."""

    def __init__(self, start, follow, rewards, horizon):
        self.start, self.follow, self.rewards, self.horizon = start, follow, rewards, horizon
        self.size, self.vocab = len(follow), len(follow[0])
        self.levels = sorted(set(rewards))

    def earned(self, kernel, level, by_length=None):
        """Of every prompt: forward, by how much mass stands where."""
        f, found = by_length or [1.0] * (self.horizon + 1), []
        for start in self.start:
            now, total = {start: 1.0}, 0.0
            for t in range(1, self.horizon + 1):
                ahead = {}
                for c, mass in now.items():
                    for a, place in enumerate(self.follow[c]):
                        more = mass * kernel[c][a]
                        if place >= self.size or t == self.horizon:
                            total += more * f[t] * (self.rewards[place] == level)
                        else:
                            ahead[place] = ahead.get(place, 0.0) + more
                now = ahead
            found.append(total)
        return found

    def came(self, kernel, start):
        """d_t of every step from the weights of contexts."""
        now, found = dict(start), []
        for _ in range(self.horizon):
            found.append(now)
            ahead = {}
            for c, mass in now.items():
                for a, place in enumerate(self.follow[c]):
                    if place < self.size:
                        ahead[place] = ahead.get(place, 0.0) + mass * kernel[c][a]
            now = ahead
        return found

    def uniform(self):
        weights = {}
        for start in self.start:
            weights[start] = weights.get(start, 0.0) + 1 / len(self.start)
        return weights

    def visits(self, kernel):
        return [sum(step.get(c, 0.0) for step in self.came(kernel, self.uniform())) for c in range(self.size)]

    def by_step(self, kernel, x):
        return [sum(mass * x[c] for c, mass in step.items()) for step in self.came(kernel, self.uniform())]

    def after(self, place, left, said, kernels, worth, f):
        """Σ over what follows of its kernels, `kernels(j)` of the j-th token from here, times what it earns."""
        if place >= self.size or not left:
            return worth[self.rewards[place]] * f[said]
        kernel, *rest = [kernels(0)], lambda j: kernels(j + 1)
        return sum(
            kernel[0][place][a] * self.after(to, left - 1, said + 1, rest[0], worth, f)
            for a, to in enumerate(self.follow[place])
        )

    def through(self, before, after, worth, by_length=None, near=None, steps=0):
        """`worth[x][level]`; what passes each edge, by recursion over what follows, remembered by nothing."""
        f = by_length or [1.0] * (self.horizon + 1)
        passed = [[0.0] * self.vocab for _ in range(self.size)]

        def kernels(j):
            return near if j < steps else after

        for x, start in enumerate(self.start):
            for t, step in enumerate(self.came(before, {start: 1 / len(self.start)}), start=1):
                for c, mass in step.items():
                    for a, place in enumerate(self.follow[c]):
                        passed[c][a] += mass * self.after(place, self.horizon - t, t, kernels, worth[x], f)
        return passed

    def responses(self, start):
        """Every response as (edges, reward), by depth-first search."""
        stack = [((), start)]
        while stack:
            edges, c = stack.pop()
            for a, place in enumerate(self.follow[c]):
                longer = (*edges, (c, a))
                if place >= self.size or len(longer) == self.horizon:
                    yield longer, self.rewards[place]
                else:
                    stack.append((longer, place))

    def expansion(self, kernel, change, order):
        """e_k of every order, response by response: elementary symmetric sums of the changes of its tokens."""
        found = [0.0] * (order + 1)
        for start in self.start:
            for edges, reward in self.responses(start):
                chance = math.prod(kernel[c][a] for c, a in edges) / len(self.start)
                symmetric = [1.0] + [0.0] * order
                for c, a in edges:
                    for k in range(order, 0, -1):
                        symmetric[k] += change[c][a] * symmetric[k - 1]
                for k in range(order + 1):
                    found[k] += chance * reward * symmetric[k]
        return found

    def squares(self, kernel, x, level, by_length=None):
        """Of every prompt."""
        f = by_length or [1.0] * (self.horizon + 1)
        return [
            sum(
                math.prod(kernel[c][a] for c, a in edges) * sum(x[c][a] for c, a in edges) ** 2 * f[len(edges)]
                for edges, reward in self.responses(start)
                if reward == level
            )
            for start in self.start
        ]

    def log_mass(self, kernel):
        return math.log(sum(sum(self.earned(kernel, level)) for level in self.levels) / len(self.start))

    def flow(self, kernel, counts=lambda t: True):
        """How often a token leads from a context to another from which one more is said, by (from, to)."""
        found = {}
        for t, step in enumerate(self.came(kernel, self.uniform()), start=1):
            if t < self.horizon and counts(t):
                for c, mass in step.items():
                    for a, place in enumerate(self.follow[c]):
                        if place < self.size:
                            found[c, place] = found.get((c, place), 0.0) + mass * kernel[c][a]
        return found

    def coefficients(self, mu, weight, group, baseline):
        """E_μ[Σ_t w_t] over the tokens that take each edge: every response, every way the rest of its group falls.

        `weight(edges, t, a)` is the weight of token t over an advantage of the sign of a;
        `baseline(own, rest)` is that advantage.
        """
        found = [[0.0] * self.vocab for _ in range(self.size)]
        for start in self.start:
            chance = dict.fromkeys(self.levels, 0.0)
            every = []
            for edges, reward in self.responses(start):
                share = math.prod(mu[c][a] for c, a in edges)
                chance[reward] += share
                every.append((edges, reward, share))
            advantages = {
                own: [
                    (math.prod(chance[r] for r in rest), baseline(own, rest))
                    for rest in itertools.product(self.levels, repeat=group - 1)
                ]
                for own in self.levels
            }
            for edges, reward, share in every:
                up = sum(p * a for p, a in advantages[reward] if a > 0)
                down = sum(-p * a for p, a in advantages[reward] if a < 0)
                for t, (c, a) in enumerate(edges):
                    unit = up * weight(edges, t, 1.0) - down * weight(edges, t, -1.0)
                    found[c][a] += share / len(self.start) * unit
        return found
