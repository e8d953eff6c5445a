import torch

from firstorder.core.quantities import means
from firstorder.core.training.agreement import agreement
from firstorder.core.training.batch import RolloutBatch


def test_what_stands_off_the_mask_is_not_averaged():
    """A margin is infinite where every expert is chosen, and an entropy is any number on a prompt."""
    routes = torch.tensor([[0, 1]]).expand(2, 4, 1, 2).clone()
    routes[:, 3:] = -1
    batch = RolloutBatch(
        tokens=torch.ones(2, 4, dtype=torch.int64),
        mask=torch.tensor([[False, False, True, True]] * 2),
        lengths=torch.tensor([4, 4]),
        logp_mu=torch.tensor([[0.0, 0.0, -1.0, -1.0]] * 2),
        rewards=torch.ones(2),
        groups=torch.zeros(2, dtype=torch.int64),
        routes=routes,
    )
    margin = torch.full((2, 4, 1), 0.25)
    margin[:, 0] = torch.inf
    entropy = torch.tensor([[torch.nan, torch.inf, 1.0, 2.0]] * 2)
    found = means(agreement(batch, routes, margin, entropy))
    assert found["route/gate_margin"] == 0.25
    assert found["update/entropy"] == 1.5
    assert found["route/flip_rate"] == found["route/flip_rate_layer_0"] == 0
