"""The tiny policy and the arithmetic that an engine runs it through."""
