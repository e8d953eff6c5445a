"""Training in the simulator, one policy or an ensemble."""
