"""Runs as evidence: what the claims and the gate of promote share."""
