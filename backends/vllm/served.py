"""vLLM over HTTP: one or more servers, each a replica; started by `backends.vllm.serve`.

A request carries the seed of its response, so it may be sent again, to any replica, and gives the same response.
A server that was started anew holds the weights of its folder: it is given those of the last sync before it samples,
and what it may have sampled before it had them is asked for again.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firstorder.backends.folder import write_weights
from firstorder.backends.rollouts import Response
from firstorder.core.errors import DataError

from .config import Vllm

RESTARTS = 3  # of servers during one generation, before it is given up


class ServerError(DataError):
    """A server of the rollout engine did not answer, or refused."""


class ServedEngine:
    """The rollout engine behind HTTP.

    Args:
        settings: the `[vllm]` section; `servers` names the replicas.
        folder: the model that the servers were started with; copied beside the weights of every sync.
        ends: the tokens that end a response.
    """

    def __init__(self, settings: Vllm, folder: str, ends: Sequence[int]) -> None:
        self.settings, self._ends, self._source = settings, list(ends), Path(folder)
        self._held = tempfile.TemporaryDirectory(prefix="firstorder-", dir=settings.shared_folder or None)
        self._shared = Path(self._held.name)  # removed with this engine
        self._current = ""  # the folder of the last sync
        self._models = [self._get(server, "/v1/models")["data"][0]["id"] for server in settings.servers]

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Response]:
        """One response to each prompt, its random numbers from its own seed, spread over the replicas.

        Raises:
            ServerError: a server is gone for longer than it was waited for, or does not stay up.
            DataError: its answer lacks log-probs or routes.
        """
        before = self._ready()
        for _ in range(RESTARTS):
            with ThreadPoolExecutor(max_workers=self.settings.max_sequences) as pool:
                found = list(pool.map(self._one, range(len(prompts)), prompts, seeds))
            after = self._ready()
            if after == before:
                return found
            before = after
        raise ServerError(
            f"vLLM servers were started anew {RESTARTS} times while they answered {len(prompts)} prompts; see why they "
            "stop, then go on with --resume"
        )

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Write the weights where every server can read them, have them loaded, and drop the prefix caches."""
        folder = self._shared / f"version-{version}"
        folder.mkdir(exist_ok=True)
        for file in self._source.glob("*.json"):
            if not file.name.endswith(".index.json"):
                shutil.copy(file, folder)
        write_weights(folder, dict(weights))
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
        found = []
        for server in self.settings.servers:
            workers = self._post(server, "/collective_rpc", {"method": "weights_held"})["results"]
            if any(folder != self._current for _, folder in workers) and self._current:
                self._load(server)
            found.append([started for started, _ in workers])
        return found

    def _load(self, server: str) -> None:
        self._post(server, "/collective_rpc", {"method": "load_folder", "kwargs": {"path": self._current}})
        self._post(server, "/reset_prefix_cache", {})

    def _one(self, number: int, prompt: list[int], seed: int) -> Response:
        replica = number % len(self.settings.servers)
        body = {
            "model": self._models[replica],
            "prompt": prompt,
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
            "stop_token_ids": self._ends,
            "seed": seed,
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        return response(self._post(self.settings.servers[replica], "/v1/completions", body)["choices"][0])

    def _get(self, server: str, path: str) -> dict[str, Any]:
        return self._ask(urllib.request.Request(server.rstrip("/") + path))

    def _post(self, server: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        return self._ask(
            urllib.request.Request(server.rstrip("/") + path, data=data, headers={"Content-Type": "application/json"})
        )

    def _ask(self, request: urllib.request.Request) -> dict[str, Any]:
        """The answer to a request, asked again while the server is away."""
        started, pause = time.monotonic(), 0.1
        while True:
            try:
                with urllib.request.urlopen(request, timeout=self.settings.timeout) as answer:
                    text = answer.read()
                return dict(json.loads(text)) if text else {}
            except (OSError, ValueError, http.client.HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    detail = error.read().decode(errors="replace").strip().splitlines()
                    raise ServerError(
                        f"{request.full_url} refused: {error.code} {detail[-1] if detail else ''}"
                    ) from None
                if time.monotonic() - started + pause > self.settings.timeout:
                    reason = getattr(error, "reason", error)
                    raise ServerError(
                        f"{request.full_url} does not answer ({reason}) within vllm.timeout = "
                        f"{self.settings.timeout:g} s; start it with `python -m firstorder.backends.vllm.serve`, "
                        "then go on with --resume"
                    ) from None
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def response(choice: dict[str, Any]) -> Response:
    """One choice of vLLM's completions API.

    Raises:
        DataError: the server does not return routed experts.
    """
    if not choice.get("routed_experts"):
        raise DataError(
            "the vLLM server returns no routed experts; start it with `python -m firstorder.backends.vllm.serve`"
        )
    routes = np.load(io.BytesIO(base64.b64decode(choice["routed_experts"])), allow_pickle=False)
    return Response(
        tokens=list(choice["token_ids"]),
        logp=[float(value) for value in choice["logprobs"]["token_logprobs"]],
        routes=torch.from_numpy(routes).to(torch.int16),
        ended=choice["finish_reason"] == "stop",
    )
