"""Real engines behind the protocol of `core.training.backend`."""
