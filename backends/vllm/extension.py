"""What a vLLM server's workers learn besides: take the weights of a folder, also on a CPU, and say what they are.

Given to the server as `--worker-extension-cls firstorder.backends.vllm.extension.Worker`.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from .arguments import INVARIANT
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

    def describe(self: Any) -> dict[str, Any]:
        """The model and its numerics, under the names of `served.Description`."""
        held, model = self.vllm_config.model_config, self.vllm_config.model_config.hf_config
        sizes = ("num_hidden_layers", "hidden_size", "num_experts", "num_experts_per_tok", "vocab_size")
        return {name: getattr(model, name, None) for name in sizes} | {
            "max_model_len": held.max_model_len,
            "dtype": str(held.dtype).removeprefix("torch."),
            "kv_cache_dtype": str(self.vllm_config.cache_config.cache_dtype),
            "quantization": held.quantization,
            "logprobs_mode": str(held.logprobs_mode),
            "max_logprobs": held.max_logprobs,
            "defaults": {
                k: v for k, v in held.get_diff_sampling_param().items() if k in ("max_tokens", "stop_token_ids")
            },
            "batch_invariant": os.environ.get(INVARIANT, "0") == "1",
        }
