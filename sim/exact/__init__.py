"""Exact expectations: objectives, gradients, expected updates, variance, and all that `measure` reports.

A world says which contexts there are and how likely each is. `edges`, `fit`, `groups` and `coherence` hold in any: they
know contexts, tokens and policies. The world here is the tree of all responses: `tree` enumerates it, `forward` runs an
engine over it, `objectives`, `advantages`, `measurement`, `variance` and `replay` add up over its responses.
"""
