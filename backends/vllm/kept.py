"""Which tokens a response was sampled from, of the log-probs that vLLM returns: those it left out have -inf."""

from __future__ import annotations

from collections.abc import Iterable

from firstorder.core.errors import DataError

from .config import Vllm

LEFT_OUT = -9999.0  # what the completions API writes for a log-prob of -inf


def kept(positions: Iterable[Iterable[tuple[int, float]]], settings: Vllm, vocabulary: int) -> list[list[int]] | None:
    """The ids of the tokens that each was sampled from, ascending, none where all were; None without truncation.

    Args:
        positions: of each token (id, log-prob in nats) of the likeliest, one more than may be kept.
        settings: the `[vllm]` section.
        vocabulary: tokens of the model.

    Raises:
        DataError: more were kept than `vllm.max_kept`, so that some of them are not known.
    """
    if not settings.truncates:
        return None
    every = [sorted({token for token, logp in here if logp > LEFT_OUT}) for here in positions]
    most = max(map(len, every), default=0)
    if settings.most_kept < most < vocabulary or most > vocabulary:
        raise DataError(
            f"vLLM samples from more than vllm.max_kept = {settings.most_kept} tokens, and returns no more of them; "
            "raise it, or sample from fewer"
        )
    return [[] if len(ids) == vocabulary else ids for ids in every]
