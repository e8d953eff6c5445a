"""Expectations over every response: objectives, gradients, expected updates, variance."""
