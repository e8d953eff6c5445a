"""The rollout engine: vLLM, with the log-probs of the distribution it samples from and the experts it visits."""
