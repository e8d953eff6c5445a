"""GPUs and their nodes, with where the numbers stand. Rates are peaks without sparsity."""

from __future__ import annotations

from dataclasses import dataclass

from firstorder.core.errors import ConfigError
from firstorder.core.settings.toml import nearest

GIB = 1 << 30
GPUS_PER_NODE = 8  # of every node below
CPUS_PER_NODE = 96  # for one task of a job; the fewest of the nodes below have 112 cores
USABLE = 0.92  # share of a GPU's memory for tensors; the rest is the context, NCCL's buffers and fragmentation: assumed


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU in a node of eight.

    Args:
        name: as --gpu takes it.
        memory: bytes.
        flops: bf16 matrix products, FLOP/s.
        bandwidth: of its memory, bytes/s.
        link: to the others of its node, bytes/s in one direction.
        network: to other nodes, bytes/s in one direction.
        host: memory of the node, bytes.
        fp8: whether it multiplies in FP8.
        source: of all of it.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    link: float
    network: float
    host: int
    fp8: bool
    source: str

    @property
    def usable(self) -> int:
        """Bytes that tensors may take."""
        return int(USABLE * self.memory)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="a100-80gb",
            memory=80 * GIB,
            flops=312e12,
            bandwidth=2.039e12,
            link=300e9,
            network=25e9,
            host=2048 * GIB,
            fp8=False,
            source="NVIDIA A100 80GB SXM and DGX A100 640GB data sheets",
        ),
        Gpu(
            name="h100",
            memory=80 * GIB,
            flops=989e12,
            bandwidth=3.35e12,
            link=450e9,
            network=50e9,
            host=2048 * GIB,
            fp8=True,
            source="NVIDIA H100 SXM and DGX H100 data sheets",
        ),
        Gpu(
            name="h200",
            memory=140 * GIB,  # sold as 141 GB; nvidia-smi reports 143,771 MiB
            flops=989e12,
            bandwidth=4.8e12,
            link=450e9,
            network=50e9,
            host=2048 * GIB,
            fp8=True,
            source="NVIDIA H200 SXM and DGX H200 data sheets",
        ),
        Gpu(
            name="b200",
            memory=179 * GIB,  # DGX B200: 1,440 GB in eight
            flops=2250e12,
            bandwidth=8e12,
            link=900e9,
            network=50e9,
            host=2048 * GIB,
            fp8=True,
            source="NVIDIA DGX B200 data sheet",
        ),
    )
}


def gpu(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        ConfigError: it is not in the table.
    """
    if name.lower() not in GPUS:
        raise ConfigError(f"no GPU {name!r}; {nearest(name.lower(), GPUS)}GPUs: {', '.join(GPUS)}")
    return GPUS[name.lower()]
