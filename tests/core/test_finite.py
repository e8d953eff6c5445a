import pytest
import torch

from firstorder.core.errors import NotFiniteError
from firstorder.core.finite import UNDEFINED, check_finite

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ({"kl": NAN}, "kl is nan: lower it"),
        ({"a": 1.0, "b": {"c": [0.0, -INF]}}, "b/c is -inf: lower it"),
        ({"exact/j_pi": torch.tensor([0.0, INF])}, "exact/j_pi is inf: lower it"),
    ],
)
def test_what_is_no_number_is_named(found, name):
    with pytest.raises(NotFiniteError) as caught:
        check_finite(found, "lower it")
    assert str(caught.value) == name


def test_numbers_and_what_may_be_undefined_pass():
    check_finite({"kl": 0.0, "step": 3, "none": None, "text": "nan", "variance": torch.ones(2)}, "")
    for name in UNDEFINED:
        check_finite({name: NAN, f"route/{name}": torch.tensor([INF, 1.0]), "nested": {name: [INF]}}, "")
