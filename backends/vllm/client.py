"""Requests to vLLM's servers, asked again while a server is away."""

from __future__ import annotations

import http
import http.client
import json
import math
import time
import urllib.error
import urllib.request
from typing import Any

from firstorder.core.errors import DataError
from firstorder.core.progress import tell

START = "start the server with `python -m firstorder.backends.vllm.serve`"


class ServerError(DataError):
    """A server of the rollout engine did not answer, or refused."""


def ask(server: str, path: str, timeout: float, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON that a server answers to a GET, or to a POST of `body`.

    Args:
        server: its address.
        path: from the root.
        timeout: seconds that it is waited for.
        body: of a POST.

    Raises:
        ServerError: it refused, or was away for longer.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.rstrip("/") + path, data=data, headers={"Content-Type": "application/json"})
    started, pause = time.monotonic(), 0.1
    while True:
        tell(f"waiting for {server}", int(time.monotonic() - started), math.ceil(timeout))
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                text = answer.read()
            tell(f"waiting for {server}", math.ceil(timeout), math.ceil(timeout))
            return dict(json.loads(text)) if text else {}
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise _refused(request.full_url, error) from None
            if time.monotonic() - started + pause > timeout:
                reason = getattr(error, "reason", error)
                raise ServerError(
                    f"{request.full_url} does not answer ({reason}) within vllm.timeout = {timeout:g} s; {START}, then "
                    "go on with --resume"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def call(server: str, timeout: float, method: str, **arguments: str) -> list[Any]:
    """What a method of `extension.Worker` returns on each of a server's workers."""
    return list(ask(server, "/collective_rpc", timeout, {"method": method, "kwargs": arguments})["results"])


def _refused(url: str, error: urllib.error.HTTPError) -> ServerError:
    detail = error.read().decode(errors="replace").strip().splitlines()
    remedy = f"; {START}" if error.code == http.HTTPStatus.NOT_FOUND else ""
    return ServerError(f"{url} refused: {error.code} {detail[-1] if detail else ''}{remedy}")
