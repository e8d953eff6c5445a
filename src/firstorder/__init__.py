"""firstorder: stable reinforcement learning of Mixture-of-Experts language models, exact before it is large."""

__version__ = "0.1.0"
