"""Real engines behind the protocol of `core.backend`."""
