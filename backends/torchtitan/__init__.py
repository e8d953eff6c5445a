"""The training engine: torchtitan's model, parallelism, optimizer and checkpoints around a short trainer of our own."""
