"""What a vLLM server's workers learn besides: take the weights of a folder, also on a CPU.

Given to the server as `--worker-extension-cls firstorder.backends.vllm.extension.Worker`.
"""

from __future__ import annotations

from typing import Any

from .transfer import forget_packed_experts


class Worker:
    """Mixed into vLLM's worker, which must have no attribute of the same name; reached by `POST /collective_rpc`."""

    def load_folder(self: Any, path: str) -> None:
        """Load the safetensors of a folder in place of the weights held."""
        if self.device.type == "cpu":
            forget_packed_experts(self.model_runner.get_model())
        self.reload_weights(weights_path=path)
