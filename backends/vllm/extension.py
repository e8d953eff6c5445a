"""What a vLLM server's workers learn besides: take the weights of a folder, also on a CPU.

Given to the server as `--worker-extension-cls firstorder.backends.vllm.extension.Worker`.
"""

from __future__ import annotations

import secrets
from typing import Any

from .transfer import forget_packed_experts

STARTED = secrets.token_hex(8)  # another one in every process, so that a server that was started anew is known


class Worker:
    """Mixed into vLLM's worker, which must have no attribute of the same name; reached by `POST /collective_rpc`."""

    def load_folder(self: Any, path: str) -> None:
        """Load the safetensors of a folder in place of the weights held."""
        if self.device.type == "cpu":
            forget_packed_experts(self.model_runner.get_model())
        self.reload_weights(weights_path=path)
        self.held_folder = path

    def weights_held(self: Any) -> list[str]:
        """Which process this is, and the folder that it loaded last; "" for the one that it was started with."""
        return [STARTED, getattr(self, "held_folder", "")]
