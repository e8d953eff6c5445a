"""Weights handed to a vLLM in the same process, through vLLM's own weight-transfer API.

vLLM's engines (nccl, ipc) move weights between CUDA devices; this one takes tensors as they are, on any device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

NAME = "firstorder"


@dataclass
class Nothing(WeightTransferInitInfo):
    """There is no rendezvous."""


@dataclass
class Weights(WeightTransferUpdateInfo):
    """(name, tensor) pairs under the names of Hugging Face."""

    weights: list[tuple[str, Tensor]]


class InProcess(WeightTransferEngine[Nothing, Weights]):
    """Loads tensors of this process into the model, layer by layer."""

    init_info_cls = Nothing
    update_info_cls = Weights

    def init_transfer_engine(self, init_info: Nothing) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Make the layers ready to take weights in checkpoint format."""
        if self.device.type == "cpu":
            forget_packed_experts(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one chunk."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Weights) -> None:
        """Load one chunk."""
        self.model.load_weights(iter(update_info.weights))

    def finish_weight_update(self) -> None:
        """Bring the layers back into the format that their kernels want."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing to release."""


def forget_packed_experts(model: Any) -> None:
    """Let the experts of a CPU model be packed again when weights have been loaded.

    vLLM packs them for its kernel only while there is no kernel yet. On a reload it would copy the weights, unpacked,
    into the packed storage, and the model would silently be another one.
    """
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def register() -> None:
    """Make the engine known to vLLM under `NAME`."""
    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, InProcess)
