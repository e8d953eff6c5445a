"""How closely two computations of one number must agree, by dtype."""

import torch

# the same real number by two orders of summation: a few hundred roundings at most
EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}
