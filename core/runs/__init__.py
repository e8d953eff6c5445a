"""The run folder: its lock, files, logs and checkpoints."""
