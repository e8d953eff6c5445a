"""torchtitan's own Trainer on the same model and the same tokens.

Everything that it times is its own. Replaced are the parts that ask for an accelerator or for files: metrics (which
read a GPU's memory), tokenizer and data loader (the tokens are given), and the two substitutions of
`backends.torchtitan.adapter` without which the model does not run on this device.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch

from firstorder.backends.torchtitan import adapter, model

# isort: split
# what torchtitan takes for the device is settled by the import above
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer


class NoMetrics(MetricsProcessor):
    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        def build(self, **kwargs):
            memory = SimpleNamespace(
                device_name="cpu", get_peak_stats=lambda: SimpleNamespace(max_reserved_gib=0.0, max_reserved_pct=0.0)
            )
            return SimpleNamespace(
                color=SimpleNamespace(blue="", red="", reset=""),
                device_memory_monitor=memory,
                should_log=lambda step: False,
                ntokens_since_last_log=0,
                data_loading_times=[],
            )


class NoTokenizer(BaseTokenizer):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        def build(self, **kwargs):
            return None


class NoData(BaseDataLoader):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        def build(self, **kwargs):
            return None


class StockTrainer(Trainer):
    """Finds the process group that is there, and our attention's masks."""

    def init_distributed(self):
        return adapter.ParallelDims.from_config(self.config.parallelism, adapter.start_process_group())

    def post_dataloading_process(self, input_dict, labels):
        positions = input_dict["positions"]
        masks = adapter.attention_masks(self.model_parts[0], positions)
        return input_dict["input"], labels, {"positions": positions, "attention_masks": masks}


def stock_trainer(shape, settings, recipe):
    """A trainer of torchtitan with the model, dtype, layout and optimizer that `backends.torchtitan` would make."""
    parallelism, _ = model.layout(settings, adapter.start_process_group())
    training = adapter.TrainingConfig(
        seq_len=settings.pack_length,
        local_batch_size=settings.microbatch_rows,
        mixed_precision_param=settings.dtype,
        disable_cuda_graphs=True,
        max_norm=recipe.optimizer.max_grad_norm,
        steps=1000,
    )
    config = model.model_config(shape, settings.pack_length)
    config.update_from_config(config=SimpleNamespace(parallelism=parallelism, training=training))
    adapter.substitute(config, model.DTYPES[settings.dtype])
    spec = ModelSpec(
        name="qwen3",
        flavor="small",
        model=config,
        parallelize_fn=adapter.parallelize_qwen3,
        pipelining_fn=None,
        post_optimizer_build_fn=None,
        state_dict_adapter=None,
    )
    section = recipe.optimizer
    optimizer = adapter.default_adamw(
        lr=section.lr, betas=section.betas, eps=section.eps, weight_decay=section.weight_decay
    )
    optimizer.implementation = "foreach" if adapter.ON_CPU else "fused"
    return StockTrainer(
        Trainer.Config(
            model_spec=spec,
            metrics=NoMetrics.Config(),
            tokenizer=NoTokenizer.Config(),
            dataloader=NoData.Config(),
            optimizer=optimizer,
            lr_scheduler=adapter.LRSchedulersContainer.Config(warmup_steps=0, decay_ratio=0.0),
            training=training,
            parallelism=parallelism,
            checkpoint=adapter.CheckpointManager.Config(enable=False),
            activation_checkpoint=None,
            compile=adapter.CompileConfig(),
            loss=CrossEntropyLoss.Config(),
        )
    )


def labelled(packed):
    """What the data loader would give, again and again: every token with the one that follows."""
    labels = torch.cat([packed.tokens[:, 1:], torch.full_like(packed.tokens[:, :1], adapter.IGNORE_INDEX)], dim=1)
    while True:
        yield {"input": packed.tokens, "positions": packed.positions}, labels
