"""Responses sampled and scored token by token."""
