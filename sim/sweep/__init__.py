"""Grids of training runs: cells, the ensembles they are trained in, and the processes that do it."""
