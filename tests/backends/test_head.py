"""Scores made in chunks are those of the whole logits, in a fraction of the memory."""

import pytest
import torch
from torch.profiler import profile

from firstorder.backends.torchtitan.head import ScoringHead


def head(chunks, vocab):
    torch.manual_seed(0)
    return ScoringHead.Config(in_features=32, out_features=vocab, chunks=chunks).build()


def inputs(tokens, vocab):
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(0, vocab, (1, tokens), generator=g)
    labels[:, ::5] = -100
    return torch.randn(1, tokens, 32, generator=g), labels, torch.randn(1, tokens, generator=g)


def run(chunks, tokens, vocab):
    """log p, entropy and the gradients of Σ w log p."""
    made, (hidden, labels, weight) = head(chunks, vocab), inputs(tokens, vocab)
    hidden.requires_grad_()
    logp, entropy = made(hidden, labels, 0.7, True)
    (logp * weight).sum().backward()
    return logp.detach(), entropy, hidden.grad, made.weight.grad


def peak(call):
    """Bytes allocated at once while `call` runs, over those before."""
    with profile(profile_memory=True) as seen:
        call()
    held = highest = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


@pytest.mark.parametrize("chunks", [2, 3, 50])
def test_scores_and_gradients_are_those_of_the_whole_logits(chunks, same):
    for found, whole in zip(run(chunks, 50, 40), run(1, 50, 40), strict=True):
        same(found, whole, 1e-6)


def test_log_probs_and_entropies_are_those_of_the_distribution(same):
    hidden, labels, _ = inputs(20, 40)
    made = head(3, 40)
    logp, entropy = made(hidden, labels, 0.7, True)
    every = (made(hidden).double() / 0.7).log_softmax(-1)
    same(logp, torch.where(labels >= 0, every.gather(-1, labels.clamp(min=0)[..., None])[..., 0], 0.0))
    same(entropy, -(every.exp() * every).sum(-1))


def kept_of(labels, vocab):
    """Each label and up to three other tokens; none at every seventh position, which then keeps all."""
    ids = (labels.clamp(min=0)[..., None] + torch.tensor([0, 3, 11, 17])) % vocab
    ids = torch.where(torch.arange(4) <= labels[..., None] % 4, ids, -1)
    ids[:, ::7] = -1
    return ids.int()


def masked(made, hidden, labels):
    """log p, entropy and the mass outside, over the kept tokens, and the gradients of Σ log p."""
    hidden = hidden.clone().requires_grad_()
    made.weight.grad = None
    logp, entropy, outside = made(hidden, labels, 0.7, True, kept_of(labels, 40))
    logp.sum().backward()
    return logp.detach(), entropy, outside, hidden.grad, made.weight.grad


def test_scores_over_kept_tokens_are_those_of_the_softmax_over_them(same):
    hidden, labels, _ = inputs(20, 40)
    made = head(3, 40)
    logp, entropy, outside, *slopes = masked(made, hidden, labels)
    ids, hidden = kept_of(labels, 40).long(), hidden.requires_grad_()
    every = made(hidden).double() / 0.7
    keep = torch.zeros(*labels.shape, 41, dtype=torch.bool).scatter_(-1, torch.where(ids < 0, 40, ids), True)[..., :40]
    keep |= ~keep.any(-1, keepdim=True)
    within = every.masked_fill(~keep, -torch.inf).log_softmax(-1)
    expected = torch.where(labels >= 0, within.gather(-1, labels.clamp(min=0)[..., None])[..., 0], 0.0)
    same(logp, expected.detach())
    same(entropy, -torch.where(keep, within.exp() * within, 0.0).sum(-1).detach())
    same(outside, (every.softmax(-1) * ~keep).sum(-1).detach())
    assert 0.05 < float(outside.mean()) < 1
    for found, slope in zip(slopes, torch.autograd.grad(expected.sum(), (hidden, made.weight)), strict=True):
        same(found, slope)


def test_chunks_change_no_score_over_kept_tokens(same):
    hidden, labels, _ = inputs(50, 40)
    for found, whole in zip(masked(head(3, 40), hidden, labels), masked(head(1, 40), hidden, labels), strict=True):
        same(found, whole, 1e-6)


def test_eight_chunks_take_an_eighth_of_the_memory():
    whole, chunked = (peak(lambda n=n: run(n, 2048, 8192)) for n in (1, 8))
    logits = 2048 * 8192 * 4
    assert whole > 3 * logits
    assert chunked < whole / 8
