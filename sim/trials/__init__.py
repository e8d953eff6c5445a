"""Runs as evidence: what the claims and promote share."""
