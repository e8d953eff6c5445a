import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from firstorder.sim.model import noise

KEYS = torch.arange(20_000)
WORD = (1 << 64) - 1


def signed(word):
    return word - (1 << 64) if word >> 63 else word


def unshift(z, bits):
    """The inverse of z ^ (z >> bits)."""
    x = z
    for _ in range(64 // bits):
        x = z ^ (x >> bits)
    return x


def preimage(word):
    """The key whose hash is `word`: SplitMix64 backwards."""
    z = unshift(word, 31) * pow(0x94D049BB133111EB, -1, 1 << 64) & WORD
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & WORD
    return signed((unshift(z, 30) - 0x9E3779B97F4A7C15) & WORD)


def test_the_hash_is_splitmix64():
    published = [16294208416658607535, 7960286522194355700, 487617019471545679]  # its stream from seed 0
    golden = 0x9E3779B97F4A7C15
    found = noise.mix(torch.tensor([signed(i * golden & WORD) for i in range(3)]))
    assert [int(x) & WORD for x in found] == published


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
@settings(deadline=None, max_examples=30)
def test_noise_is_a_function_of_its_key_alone(a, b):
    pair = noise.normal(torch.tensor([a, b]))
    assert torch.equal(pair.flip(0), noise.normal(torch.tensor([b, a])))
    assert torch.equal(pair[:1], noise.normal(torch.tensor([a])))


def test_noise_does_not_depend_on_order_or_shape():
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise.normal(KEYS)[order], noise.normal(KEYS[order]))
    assert torch.equal(noise.normal(KEYS).view(100, -1), noise.normal(KEYS.view(100, -1)))


def test_uniforms_lie_strictly_inside_the_unit_interval():
    extremes = torch.tensor([preimage(0), preimage(WORD), preimage(WORD >> 1)])
    assert [int(x) & WORD for x in noise.mix(extremes)] == [0, WORD, WORD >> 1]
    for keys in (KEYS, extremes):
        draws = noise.uniform(keys)
        assert draws.dtype == torch.float64
        assert ((draws > 0) & (draws < 1)).all()
        assert noise.normal(keys).isfinite().all()


def test_uniforms_look_uniform_and_normals_normal():
    assert stats.kstest(noise.uniform(KEYS).numpy(), "uniform").pvalue > 0.01
    draws = noise.normal(KEYS).numpy()
    assert stats.kstest(draws, "norm").pvalue > 0.01
    assert abs(draws.mean()) < 4 / len(draws) ** 0.5
    assert abs(draws.var() - 1) < 4 * (2 / len(draws)) ** 0.5
    assert abs(stats.kurtosis(draws)) < 4 * (24 / len(draws)) ** 0.5


def test_neighbouring_keys_sites_and_seeds_are_uncorrelated():
    draws = noise.normal(KEYS)
    others = [noise.normal(KEYS + 1), noise.normal(noise.combine(KEYS, 1)), noise.normal(noise.combine(KEYS, 2))]
    others.append(noise.normal(noise.combine(noise.mix(KEYS), 0)))
    for other in others:
        assert abs(float((draws * other).mean())) < 4 / len(KEYS) ** 0.5


def test_a_combined_key_depends_on_both_parts_and_on_their_order():
    grid = noise.combine(torch.arange(100)[:, None], torch.arange(1, 4)).flatten()
    assert len(grid.unique()) > 290  # 3 k + p has only these collisions for neighbouring raw keys
    hashed = noise.combine(noise.mix(torch.arange(100))[:, None], torch.arange(100)).flatten()
    assert len(hashed.unique()) == 10_000
    assert noise.combine(torch.tensor(1), 2) != noise.combine(torch.tensor(2), 1)
