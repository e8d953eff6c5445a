"""What the GPU tests run in processes of their own; engines are imported there and nowhere else."""

import time

from firstorder.backends.tasks import sums
from firstorder.backends.vllm.config import Vllm

PROMPTS = [sums.encode(sums.prompt(i)) for i in range(64)]


def open_engine(folder, **settings):
    from firstorder.backends.vllm.arguments import prepare

    wanted = Vllm(max_prompt=40, kv_cache_mib=256, **settings)
    prepare(wanted)
    from firstorder.backends.vllm.engine import InProcessEngine

    return InProcessEngine(wanted, str(folder), [sums.END], 0)


def sample(engine, prompts=PROMPTS):
    return [(one.tokens, one.logp, one.routes.tolist()) for one in engine.generate(prompts, range(len(prompts)))]


def weight_dtypes(folder, quantization):
    """dtype of every weight, by name."""
    engine = open_engine(folder, quantization=quantization)
    (found,) = engine._llm.apply_model(lambda model: {n: str(p.dtype) for n, p in model.named_parameters()})
    return engine.emulated, found


def synchronised(folder, other, quantization):
    """Responses of an engine that was given the weights of another folder, and of one that was started with them."""
    from safetensors.torch import load_file

    engine = open_engine(folder, quantization=quantization)
    before = sample(engine)
    engine.sync([(name, w.cuda()) for name, w in load_file(f"{other}/model.safetensors").items()], 1)
    after = sample(engine)
    del engine
    return before, after, sample(open_engine(other, quantization=quantization))


def in_batches(folder, quantization):
    """Responses together, and each alone, in batch-invariant mode."""
    engine = open_engine(folder, quantization=quantization, batch_invariant=True)
    together = sample(engine)
    alone = [engine.generate([prompt], [i])[0] for i, prompt in enumerate(PROMPTS)]
    return together, [(one.tokens, one.logp, one.routes.tolist()) for one in alone]


def throughput(folder, quantization):
    """Response tokens and seconds of a second generation; the first warms up."""
    engine = open_engine(folder, quantization=quantization)
    many = PROMPTS * 16
    engine.generate(many, range(len(many)))
    started = time.perf_counter()
    done = engine.generate(many, range(len(many)))
    return sum(len(one.tokens) for one in done), time.perf_counter() - started


def send_by_nccl(address, port, other):
    """Send the weights of a folder to a server on another GPU, by vLLM's own trainer side of its nccl backend."""
    import torch
    from safetensors.torch import load_file
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
    from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

    class Source(WeightSource):
        def __init__(self, weights):
            self.weights = weights

        def metadata(self):
            return [ParamMeta(name, w.dtype, tuple(w.shape)) for name, w in self.weights.items()]

        def __iter__(self):
            return iter(self.weights.items())

    torch.cuda.set_device(0)
    held = {name: w.cuda() for name, w in load_file(f"{other}/model.safetensors").items()}
    info = NCCLTrainerInitInfo(master_address="127.0.0.1", master_port=port, world_size=2, rank=0)
    engine = NCCLTrainerWeightTransferEngine.trainer_init(
        info, client=HTTPVLLMWeightSyncClient(address), source=Source(held)
    )
    engine.send_weights()
    engine.shutdown()


def sampled_first(folder):
    """log μ of the first token of each response of an engine with the weights of a folder."""
    import torch

    return torch.tensor([logp[0] for _, logp, _ in sample(open_engine(folder))])


def trained(folder):
    """Scores with live routes and with the same routes replayed, the gradient's norm, and whether weights moved."""
    import tempfile
    from pathlib import Path

    import torch

    from firstorder.backends.torchtitan.config import Torchtitan
    from firstorder.backends.torchtitan.trainer import Trainer
    from firstorder.core.method.recipe import Recipe
    from firstorder.core.routing import Replay
    from firstorder.core.training.batch import RolloutBatch

    tokens = torch.randint(2, len(sums.TOKENS), (8, 24), generator=torch.Generator().manual_seed(0))
    settings = Torchtitan(model=str(folder), pack_length=64)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(settings, Recipe(), 1.0, Path(scratch))
        mask = (torch.arange(24) >= 4).expand(8, 24)
        lengths = torch.full((8,), 24)
        batch = RolloutBatch(
            tokens=tokens,
            mask=mask,
            lengths=lengths,
            logp_mu=torch.zeros(8, 24, dtype=torch.float64),
            rewards=torch.zeros(8, dtype=torch.float64),
            groups=torch.arange(8) // 4,
        )
        live = trainer.score(batch)
        again = trainer.score(batch, Replay(ids=live.routes))
        before = next(trainer.weights())[1].clone()
        done = trainer.supervise(tokens, lengths, mask)
        moved = not torch.equal(next(trainer.weights())[1], before)
    return live.logp.tolist(), again.logp.tolist(), done.grad_norm, moved


def run_of_two_steps(folder, out):
    from firstorder.cli.main import run

    settings = ["task.kind=sums", "schedule.steps=2", "schedule.prompts=4", "schedule.group_size=4"]
    settings += [f"torchtitan.model={folder}", "vllm.kv_cache_mib=256"]
    words = [word for setting in settings for word in ("--set", setting)]
    return run(["train", "minirl-r3-n2", "--backend", "torchtitan", *words, "--out", out])
