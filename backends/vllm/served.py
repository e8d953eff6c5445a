"""vLLM over HTTP: one or more servers, each a replica; started by `backends.vllm.serve`.

A request carries the seed of its response, so it may be sent again, to any replica, and gives the same response.
A server that was started anew holds the weights of its folder: it is given those of the last sync before it samples,
and what it may have sampled before it had them is asked for again.
"""

from __future__ import annotations

import base64
import io
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firstorder.backends.folder import copy_rest, read_shape, write_weights
from firstorder.backends.rollouts import Response
from firstorder.core.errors import ConfigError, DataError

from .arguments import is_emulated, sampling
from .client import START, ServerError, ask, call
from .config import Vllm
from .kept import kept
from .replicas import check_servers

RESTARTS = 3  # of servers during one generation, before it is given up


class ServedEngine:
    """The rollout engine behind HTTP.

    Args:
        settings: the `[vllm]` section; `servers` names the replicas.
        folder: the model that the servers were started with; copied beside the weights of every sync.
        ends: the tokens that end a response.

    Raises:
        ServerError: a server does not answer, or is not one that `backends.vllm.serve` started.
        ConfigError: the servers differ, or hold another model, or run with other numerics; or `shared_folder` is none.
    """

    def __init__(self, settings: Vllm, folder: str, ends: Sequence[int]) -> None:
        self.settings, self._ends, self._source = settings, list(ends), Path(folder)
        self._vocabulary = read_shape(self._source).vocab_size
        self.emulated = is_emulated(check_servers(settings, folder)["quantization"])
        wait = settings.timeout
        self._models = [ask(server, "/v1/models", wait)["data"][0]["id"] for server in settings.servers]
        self._held = _shared_folder(settings.shared_folder)
        self._shared = Path(self._held.name)  # removed with this engine
        self._current = ""  # the folder of the last sync

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Response]:
        """One response to each prompt, its random numbers from its own seed, spread over the replicas.

        Raises:
            ServerError: a server is gone for longer than it was waited for, or does not stay up.
            DataError: its answer lacks log-probs or routes.
        """
        before = self._ready()
        for _ in range(RESTARTS):
            with ThreadPoolExecutor(self.settings.max_sequences * len(self.settings.servers)) as pool:
                responses = list(pool.map(self._one, range(len(prompts)), prompts, seeds))
            after = self._ready()
            if after == before:
                return responses
            before = after
        raise ServerError(
            f"vLLM servers restarted {RESTARTS} times while they answered {len(prompts)} prompts; see why they "
            "stop, then go on with --resume"
        )

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Write the weights where every server can read them, have them loaded, and drop the prefix caches."""
        folder = self._shared / f"version-{version}"
        folder.mkdir(exist_ok=True)
        copy_rest(self._source, folder)
        write_weights(folder, weights)
        self._current = str(folder)
        for server in self.settings.servers:
            self._load(server)
        for old in self._shared.glob("version-*"):
            if old != folder:
                shutil.rmtree(old)

    def close(self) -> None:
        """Remove the weights that were shared."""
        self._held.cleanup()

    def _ready(self) -> list[Any]:
        """The processes behind the servers, all with the weights of the last sync."""
        processes = []
        for server in self.settings.servers:
            workers = call(server, self.settings.timeout, "weights_held")
            if any(folder != self._current for _, folder in workers) and self._current:
                self._load(server)
            processes.append([started for started, _ in workers])
        return processes

    def _load(self, server: str) -> None:
        call(server, self.settings.timeout, "load_folder", path=self._current)
        ask(server, "/reset_prefix_cache", self.settings.timeout, {})

    def _one(self, number: int, prompt: list[int], seed: int) -> Response:
        replica = number % len(self.settings.servers)
        body = sampling(self.settings, self._ends, self._vocabulary) | {
            "model": self._models[replica],
            "prompt": prompt,
            "seed": seed,
            "return_token_ids": True,
            "return_tokens_as_token_ids": self.settings.truncates,  # the likeliest under the names of their ids
        }
        completion = ask(self.settings.servers[replica], "/v1/completions", self.settings.timeout, body)
        return response(completion["choices"][0], self.settings, self._vocabulary)


def _shared_folder(inside: str) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="firstorder-", dir=inside or None)
    except OSError as error:
        raise ConfigError(
            f"vllm.shared_folder = {inside} cannot be written: {error.strerror}; give a folder that the servers can "
            "read too"
        ) from None


def response(choice: dict[str, Any], settings: Vllm, vocabulary: int) -> Response:
    """One choice of vLLM's completions API; other arguments as of `kept.kept`.

    Raises:
        DataError: it lacks tokens, log-probs or routed experts; or more tokens were kept than may be.
    """
    logp: list[Any] = (choice.get("logprobs") or {}).get("token_logprobs") or [None]
    missing = {
        "token ids": choice.get("token_ids") is None,
        "routed experts": not choice.get("routed_experts"),
        "log-probs of the sampled tokens": None in logp,
    }
    for name, lacks in missing.items():
        if lacks:
            raise DataError(f"the vLLM server returns no {name}; {START}")
    try:
        routes = np.load(io.BytesIO(base64.b64decode(choice["routed_experts"])), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"the routed experts of the vLLM server cannot be read: {error}; is it 0.30.0?") from None
    return Response(
        tokens=list(choice["token_ids"]),
        logp=[float(value) for value in logp],
        routes=torch.from_numpy(routes),
        ended=choice["finish_reason"] == "stop",
        kept=kept(_likeliest(choice) if settings.truncates else (), settings, vocabulary),
    )


def _likeliest(choice: dict[str, Any]) -> list[list[tuple[int, float]]]:
    """(id, log-prob) of the likeliest tokens at each position.

    Raises:
        DataError: the server returns none, or not by their ids.
    """
    try:
        positions: list[dict[str, float]] = choice["logprobs"]["top_logprobs"]
        return [[(int(name.removeprefix("token_id:")), logp) for name, logp in at.items()] for at in positions]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the vLLM server does not say which tokens it kept: {error!r} in `top_logprobs`; {START}"
        ) from None
