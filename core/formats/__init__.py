"""Dumps of rollouts and training batches as frameworks write them: pure parsers, streamed; and a neutral form."""
