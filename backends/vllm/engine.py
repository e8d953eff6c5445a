"""vLLM in this process: `LLM`, with routed experts, log-probs after temperature, and weights in place.

The variables below are read when vLLM is imported, so they are set first. The engine runs without worker processes:
tensors then reach it as they are, and it starts in seconds. torchtitan's process group must exist before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

ON_CPU = not torch.accelerator.is_available()
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
CPU_ENVIRONMENT = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
for _name, _value in (ENVIRONMENT | (CPU_ENVIRONMENT if ON_CPU else {})).items():
    os.environ.setdefault(_name, _value)
if ON_CPU:  # the compiled sampler costs seconds at the first call and gains nothing
    _dynamo: Any = torch._dynamo.config
    _dynamo.disable = True

from vllm import LLM, SamplingParams  # noqa: E402
from vllm.config import WeightTransferConfig  # noqa: E402

from firstorder.backends.rollouts import Response  # noqa: E402
from firstorder.core.errors import ConfigError  # noqa: E402

from . import transfer  # noqa: E402
from .config import Vllm  # noqa: E402


class InProcessEngine:
    """The rollout engine in the trainer's process.

    Args:
        settings: the `[vllm]` section.
        folder: the model.
        ends: the tokens that end a response.
        seed: of the engine; a response's own seed comes with its request.
    """

    def __init__(self, settings: Vllm, folder: str, ends: Sequence[int], seed: int) -> None:
        transfer.register()
        self.settings, self._ends = settings, list(ends)
        try:
            self._llm = LLM(
                model=folder,
                dtype=settings.dtype,
                kv_cache_dtype=settings.kv_cache_dtype,
                max_model_len=settings.max_prompt + settings.max_tokens,
                max_num_seqs=settings.max_sequences,
                kv_cache_memory_bytes=settings.kv_cache_mib << 20,
                enable_prefix_caching=settings.prefix_caching,
                enforce_eager=ON_CPU,
                skip_tokenizer_init=True,
                enable_return_routed_experts=True,
                logprobs_mode="processed_logprobs",  # of the distribution sampled from, temperature included
                weight_transfer_config=WeightTransferConfig(backend=transfer.NAME),
                disable_log_stats=True,
                seed=seed,
            )
        except (ValueError, NotImplementedError) as error:
            text = str(error).strip().splitlines()[-1]
            raise ConfigError(f"vLLM does not start with these [vllm] settings: {text}") from None
        self._llm.init_weight_transfer_engine({"init_info": {}})

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Response]:
        """One response to each prompt, its random numbers from its own seed."""
        wanted = [
            SamplingParams(
                temperature=self.settings.temperature,
                max_tokens=self.settings.max_tokens,
                stop_token_ids=self._ends,
                seed=seed,
                logprobs=0,  # of the sampled token alone
                detokenize=False,
            )
            for seed in seeds
        ]
        done = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], wanted, use_tqdm=False)
        return [_response(one.outputs[0]) for one in done]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take the trainer's weights; the prefix cache, which holds the old ones' keys and routes, is dropped."""
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": {"weights": list(weights)}})
        self._llm.finish_weight_update(weight_version=str(version))
        self._llm.reset_prefix_cache()


def _response(done: Any) -> Response:
    tokens = list(done.token_ids)
    logp = [float(at[token].logprob) for at, token in zip(done.logprobs, tokens, strict=True)]
    routes = torch.from_numpy(done.routed_experts).to(torch.int16)
    return Response(tokens=tokens, logp=logp, routes=routes, ended=done.finish_reason == "stop")
