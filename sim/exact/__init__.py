"""Exact expectations: objectives, gradients, expected updates, variance, and all that `measure` reports.

A world says which contexts there are and how likely each is, and sums over its responses (`world`). The tree
enumerates them (`tree`), runs engines over its prefixes (`forward`) and sums level by level (`levels`); in the graph
contexts merge (`graph`), and responses of any length are summed over by recursion (`recursion`). `size` says whether
one fits.

`scene` runs two engines over a world, `objectives` and `bounds` compare their policies, `measurement` is a recipe on a
scene: weighed by edge where its weight has a form (`forms`), else response by response. `variance` is that of
enumerated responses and `edge_variance` that of any number; `observed` is what training logs of a batch, of all
responses.

`hybrids` are the policies between μ_old and a target, `split` shares out among their parts (`game`) what an update is
off by, and `steps` does it for many recipes and minibatches at once.
"""
