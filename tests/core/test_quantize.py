import pytest
import torch

from firstorder.core import quantize

GRID = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
GRID = GRID[GRID.isfinite()]


def draw(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.logspace(-3, 3, shape[-1], dtype=torch.float64)


def nearest(x, grid):
    """The grid value nearest to every x, by looking at all of them."""
    return grid[(x[..., None] - grid).abs().argmin(-1)]


def scale_of(x, top):
    return (x.abs().max() / top).float().double()


def test_fp8_values_are_e4m3_numbers_times_one_float32_scale():
    x = draw(5, 8)
    for row, got in zip(x, quantize.fp8(x, (-1,)), strict=True):
        scale = scale_of(row, 448.0)
        units = got / scale
        assert torch.equal(units.float().to(torch.float8_e4m3fn).double() * scale, got)
        torch.testing.assert_close(got, nearest(row / scale, GRID) * scale, rtol=1e-15, atol=0.0)


def test_fp8_holds_the_largest_value_and_every_zero():
    x = draw(4, 6)
    x[1] = 0.0
    got = quantize.fp8(x, (-1,))
    top = x.abs().argmax(-1, keepdim=True)
    torch.testing.assert_close(got.gather(-1, top), x.gather(-1, top), rtol=1e-6, atol=0.0)
    assert (got[1] == 0).all()


def test_fp8_is_a_projection():
    x = quantize.fp8(draw(4, 6), (-2, -1))
    assert torch.equal(quantize.fp8(x, (-2, -1)), x)


def test_int8_rounds_to_127_steps_of_each_channel():
    x = draw(7, 3)
    got = quantize.int8(x, (-2,))
    for column in range(3):
        scale = scale_of(x[:, column], 127.0)
        steps = got[:, column] / scale
        torch.testing.assert_close(steps, steps.round(), rtol=0.0, atol=1e-12)
        assert steps.abs().max() <= 127
        assert ((got[:, column] - x[:, column]).abs() <= scale / 2 * (1 + 1e-6)).all()


@pytest.mark.parametrize(("rows", "columns", "block"), [(8, 8, 4), (5, 7, 3), (3, 9, 4), (2, 2, 5)])
def test_blocks_are_quantised_each_on_its_own_ragged_ones_included(rows, columns, block):
    x = draw(2, rows, columns)
    got = quantize.fp8_blocks(x, block)
    for top in range(0, rows, block):
        for left in range(0, columns, block):
            tile = (slice(None), slice(top, top + block), slice(left, left + block))
            assert torch.equal(got[tile], quantize.fp8(x[tile], (-2, -1)))


@pytest.mark.parametrize(("width", "block"), [(8, 4), (7, 3), (2, 5)])
def test_activation_groups_are_quantised_each_on_its_own(width, block):
    x = draw(3, width)
    got = quantize.fp8_groups(x, block)
    for left in range(0, width, block):
        assert torch.equal(got[:, left : left + block], quantize.fp8(x[:, left : left + block], (-1,)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_is_that_of_the_format(dtype):
    x = draw(4, 6)
    got = quantize.round_to(x, dtype)
    assert got.dtype == torch.float64
    assert torch.equal(got.to(dtype), x.to(dtype))
    assert torch.equal(quantize.round_to(got, dtype), got)


@pytest.mark.parametrize(
    "rounding",
    [
        lambda x: quantize.round_to(x, torch.bfloat16),
        lambda x: quantize.fp8(x, (-1,)),
        lambda x: quantize.int8(x, (-2,)),
        lambda x: quantize.fp8_blocks(x, 3),
        lambda x: quantize.fp8_groups(x, 3),
    ],
)
def test_gradients_go_straight_through_and_leave_the_values_alone(rounding):
    x = draw(5, 7)
    leaf = x.clone().requires_grad_()
    got = rounding(leaf)
    assert torch.equal(got.detach(), rounding(x))
    slope = draw(5, 7, seed=1)
    got.backward(slope)
    assert torch.equal(leaf.grad, slope)
