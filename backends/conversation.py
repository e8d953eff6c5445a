"""Episodes of one turn or of several: the engine samples, the task answers, the engine goes on from all tokens so far.

Rows of routes: the request of a turn runs every token before it again, or takes it from its prefix cache. Tokens that
were sampled keep the rows that they were sampled with. Rows of the environment's tokens, and of the token that ended
the turn before, which no request had run yet, are those of the later request. Where both requests have a row they
should agree, and `Conversations.flips` counts where they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.errors import DataError
from firstorder.core.tasks import Episodes, Task, padded

from .keys import key
from .rollouts import Engine, Response

LARGEST_FLIP_RATE = 0.5  # rows of other tokens or weights differ nearly everywhere


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """Finished episodes.

    Args:
        prompts: token ids, one list an episode.
        responses: all that follows each, the environment's tokens not `sampled`.
        rewards: of the task's verifier, float64.
        flips: (token, layer) whose expert set differed between the request of a turn and a later one, and how many
            there were to compare.
    """

    prompts: list[list[int]]
    responses: list[Response]
    rewards: Tensor
    flips: tuple[int, int]


def converse(engine: Engine, task: Task, rows: Sequence[int], seeds: Sequence[int], longest: int) -> Conversations:
    """Let the policy and the environment of a task speak in turn until nobody answers.

    Args:
        engine: the policy.
        task: the environment.
        rows: of the task's prompts.
        seeds: of each episode's first turn; those of later turns are hashes of it.
        longest: tokens that a request may hold; an episode that no longer fits is over.

    Raises:
        DataError: a prompt is too long, or routes of a turn are not those of the same tokens in the next request.
    """
    start = task.prompts(torch.tensor(rows))
    prompts = [tokens[:length] for tokens, length in zip(start.tokens.tolist(), start.lengths.tolist(), strict=True)]
    if (longest_prompt := max(map(len, prompts))) > longest:
        raise DataError(f"a prompt has {longest_prompt} tokens, and vllm.max_prompt is {longest}; raise it")
    said = list(engine.generate(prompts, seeds))
    flips, turn, speaking = torch.zeros(2, dtype=torch.int64), 1, list(range(len(rows)))
    while speaking := [i for i in speaking if said[i].ended]:
        heard = task.answer(
            episodes([rows[i] for i in speaking], [prompts[i] for i in speaking], [said[i] for i in speaking])
        )
        answers = [t[:length] for t, length in zip(heard.tokens.tolist(), heard.lengths.tolist(), strict=True)]
        asked = {
            i: answer
            for i, answer in zip(speaking, answers, strict=True)
            if answer and len(prompts[i]) + len(said[i].tokens) + len(answer) <= longest
        }
        if not (speaking := list(asked)):
            break
        histories = [prompts[i] + said[i].tokens + asked[i] for i in speaking]
        for i, more in zip(
            speaking, engine.generate(histories, [key(seeds[i], "turn", turn) for i in speaking]), strict=True
        ):
            flips += torch.tensor(differing(said[i].routes, more.routes))
            said[i] = joined(said[i], asked[i], more)
        turn += 1
    count = (int(flips[0]), int(flips[1]))
    if count[0] > LARGEST_FLIP_RATE * count[1]:
        raise DataError(
            f"{count[0] / count[1]:.0%} of the routes of earlier turns differ in the next request: the rollout engine "
            "returned rows of other tokens, or ran other weights; restart it, then go on with --resume"
        )
    rewards = task.verify(episodes(rows, prompts, said))
    return Conversations(prompts=prompts, responses=said, rewards=rewards, flips=count)


def episodes(rows: Sequence[int], prompts: Sequence[list[int]], said: Sequence[Response]) -> Episodes:
    """What a task sees of conversations."""
    tokens, lengths = padded([prompt + response.tokens for prompt, response in zip(prompts, said, strict=True)])
    mask, _ = padded([[0] * len(p) + [int(s) for s in r.sampled] for p, r in zip(prompts, said, strict=True)])
    return Episodes(tokens=tokens, mask=mask.bool(), lengths=lengths, prompt=torch.tensor(rows))


def joined(said: Response, answer: Sequence[int], more: Response) -> Response:
    """A response, the environment's answer and the next turn as one."""
    return replace(
        more,
        tokens=[*said.tokens, *answer, *more.tokens],
        logp=[*said.logp, *[0.0] * len(answer), *more.logp],
        sampled=[*said.sampled, *[False] * len(answer), *more.sampled],
        routes=torch.cat([said.routes, more.routes[len(said.routes) :]]),
        gates=None
        if said.gates is None or more.gates is None
        else torch.cat([said.gates, more.gates[len(said.gates) :]]),
        kept=None if more.kept is None else [*(said.kept or []), *[[] for _ in answer], *more.kept],
    )


def differing(known: Tensor, later: Tensor) -> tuple[int, int]:
    """At how many (token, layer) expert sets `[N, M, K]` differ from the first N rows of `later`, and of how many."""
    apart = (known.sort(-1).values != later[: len(known)].sort(-1).values).any(-1)
    return int(apart.sum()), apart.numel()
