"""vLLM in this process: `LLM`, with routed experts, log-probs after temperature, and weights in place.

The variables that `arguments.prepare` sets are read when vLLM is imported, so it comes before this module. The engine
runs without worker processes: tensors then reach it as they are, and it starts in seconds. torchtitan's process group
must exist before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.config import WeightTransferConfig

from firstorder.backends.folder import read_shape
from firstorder.backends.rollouts import Response
from firstorder.core.errors import ConfigError, DataError

from . import transfer
from .arguments import arguments, is_emulated, sampling
from .config import Vllm
from .gates import carried, unpacked
from .kept import kept


class InProcessEngine:
    """The rollout engine in the trainer's process.

    Args:
        settings: the `[vllm]` section.
        folder: the model.
        ends: the tokens that end a response.
        seed: of the engine; a response's own seed comes with its request.
        gates: its routers' gate weights come with the routes.
    """

    def __init__(self, settings: Vllm, folder: str, ends: Sequence[int], seed: int, *, gates: bool = False) -> None:
        transfer.register()
        self._normalised = read_shape(Path(folder)).norm_topk_prob if gates else None
        self.settings, self._ends = settings, list(ends)
        self._vocabulary = read_shape(Path(folder)).vocab_size
        asked = arguments(settings, folder)
        self.emulated = is_emulated(asked.get("quantization"))
        if self.emulated:
            from . import fp8  # noqa: F401  # registers its schemes
        try:
            with carried() if gates else nullcontext():
                self._llm = LLM(
                    **asked,
                    skip_tokenizer_init=True,
                    weight_transfer_config=WeightTransferConfig(backend=transfer.NAME),
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    seed=seed,
                )
        except (ValueError, NotImplementedError) as error:
            text = str(error).strip().splitlines()[-1]
            raise ConfigError(f"vLLM does not start with these [vllm] settings: {text}") from None
        self._llm.init_weight_transfer_engine({"init_info": {}})

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Response]:
        """One response to each prompt, its random numbers from its own seed."""
        asked = sampling(self.settings, self._ends, self._vocabulary)
        params = [SamplingParams(**asked, seed=seed, detokenize=False) for seed in seeds]
        outputs = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        said = [read(one.outputs[0], self.settings, self._vocabulary) for one in outputs]
        return said if self._normalised is None else [gated(one, normalised=self._normalised) for one in said]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take the trainer's weights; the prefix cache, which holds the old ones' keys and routes, is dropped."""
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": {"weights": list(weights)}})
        self._llm.finish_weight_update(weight_version=str(version))
        self._llm.reset_prefix_cache()

    def close(self) -> None:
        """Nothing of it is outside of the process."""


def gated(response: Response, *, normalised: bool) -> Response:
    """A response whose routes came packed with their gates."""
    routes, gates = unpacked(response.routes, normalised=normalised)
    return replace(response, routes=routes, gates=gates)


def read(completion: Any, settings: Vllm, vocabulary: int) -> Response:
    """One completion of vLLM; arguments as of `kept.kept`.

    Raises:
        DataError: it has no log-probs, or no routes; or more tokens were kept than may be.
    """
    if completion.logprobs is None or completion.routed_experts is None:
        missing = "log-probs" if completion.logprobs is None else "routed experts"
        raise DataError(f"vLLM returned no {missing}; is it version 0.30.0? see docs/engines.md")
    tokens = list(completion.token_ids)
    logp = [float(at[token].logprob) for at, token in zip(completion.logprobs, tokens, strict=True)]
    return Response(
        tokens=tokens,
        logp=logp,
        routes=torch.from_numpy(completion.routed_experts),
        ended=completion.finish_reason == "stop",
        kept=kept(([(i, x.logprob) for i, x in at.items()] for at in completion.logprobs), settings, vocabulary),
    )
