"""The cheap generator: exact under transformations, and random enough for what keys are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxmarl_tad import prng
from jaxmarl_tad.rollout import keys

HASH = prng.implementation("hash")


def key(seed=0):
    return jax.random.key(seed, impl=HASH)


def words(many, each):
    """``[keys, each]`` words of many keys."""
    return np.asarray(jax.jit(jax.vmap(lambda k: jax.random.bits(k, (each,))))(many))


# --- an implementation of jax.random --------------------------------------------------------------


def test_implementations_are_what_jax_takes():
    assert jax.random.key_impl(key()) == HASH
    assert prng.implementation("hash") is HASH
    default = jax.random.key(3, impl=prng.implementation("threefry"))
    assert jax.random.key_impl(default) == "threefry2x32"
    assert set(map(prng.implementation, prng.GENERATORS)) == {HASH, "threefry2x32"}


def test_bits_are_the_formula():
    """The module's formula with Python's integers, for a key and counters chosen by hand."""
    full = 2**32 - 1

    def mix(x):
        x = ((x ^ x >> 16) * 0x21F0AAAD) & full
        x = ((x ^ x >> 15) * 0x735A2D97) & full
        return x ^ x >> 15

    first, second = 0x01234567, 0x89ABCDEF
    s0 = (first + mix(second)) & full
    s1 = (second + mix(s0 ^ 0x1B56C4E9)) & full
    places = [(i * 0x9E3779B9 + s0) & full for i in range(5)]
    expected = [(mix(mix(c) ^ s1) + c) & full for c in places]
    made = jax.random.wrap_key_data(np.asarray([first, second], np.uint32), impl=HASH)
    assert jax.random.bits(made, (5,)).tolist() == expected
    np.testing.assert_array_equal(
        jax.random.bits(made, (2, 2), np.uint16), (np.asarray(expected[:4]) & 0xFFFF).reshape(2, 2)
    )
    assert jax.random.bits(made, (), np.uint8) == expected[0] & 0xFF


def everything(k):
    """What learners and games draw."""
    return (
        jax.random.key_data(jax.random.split(k, (2, 3))),
        jax.random.key_data(jax.random.fold_in(k, 7)),
        jax.random.uniform(k, (5,)),
        jax.random.normal(k, (4,)),
        jax.random.permutation(k, 7),
    )


def test_vmapped_and_compiled_equal_one_by_one():
    many = jax.random.split(key(), 4)
    together = jax.vmap(everything)(many)
    compiled = jax.jit(jax.vmap(everything))(many)
    alone = [everything(k) for k in many]
    for i, expected in enumerate(alone):
        for a, b, c in zip(expected, together, compiled, strict=True):
            np.testing.assert_array_equal(a, b[i])
            np.testing.assert_array_equal(a, c[i])


def test_seeds_may_be_traced_and_of_any_sign():
    from_traced = jax.jit(lambda s: jax.random.key_data(key(s)))(np.int32(5))
    np.testing.assert_array_equal(from_traced, jax.random.key_data(key(5)))
    assert (jax.random.key_data(key(-1)) != jax.random.key_data(key(1))).all()


def test_sixty_four_bits():
    with jax.enable_x64(True):
        drawn = np.asarray(jax.random.bits(key(1), (2**12,), np.uint64))
        assert drawn.dtype == np.uint64
        assert len({*drawn.tolist()}) == 2**12
        high, low = drawn >> np.uint64(32), drawn & np.uint64(2**32 - 1)
        assert abs(np.corrcoef(high.astype(float), low.astype(float))[0, 1]) < 5 / 2**6
        wide = jax.random.key_data(key(np.int64(2**40 + 1)))
        assert (wide != jax.random.key_data(key(np.int64(1)))).all()


# --- keys -----------------------------------------------------------------------------------------


def test_a_split_holds_no_key_twice():
    data = np.asarray(jax.random.key_data(jax.random.split(key(), 2**18))).astype(np.uint64)
    whole = np.concatenate([data[:, 0] << np.uint64(32) | data[:, 1]])
    assert len(np.unique(whole)) == 2**18
    assert len(np.unique(data[:, 0])) == 2**18  # a bijection of the counter


def test_drawing_splitting_and_folding_in_use_different_words():
    """A key that is both drawn from and folded into, as some learners do, gives unrelated words."""
    many = jax.random.split(key(2), 2**10)
    drawn = words(many, 8)
    split = jax.random.key_data(jax.vmap(lambda k: jax.random.split(k, 4))(many)).reshape(-1, 8)
    folded = jax.vmap(lambda k: jax.vmap(lambda t: jax.random.fold_in(k, t))(jnp.arange(4)))(many)
    folded = jax.random.key_data(folded).reshape(-1, 8)
    for a, b in ((drawn, split), (drawn, folded), (split, folded)):
        assert_unrelated(a, np.asarray(b))


def assert_unrelated(a, b):
    """Two arrays of words agree in half of their bits, each bit apart: within 5 standard errors."""
    agree = np.unpackbits((~(np.asarray(a) ^ np.asarray(b))).view(np.uint8)).reshape(-1, 32)
    error = np.abs(agree.mean(0) - 0.5) / (0.5 / np.sqrt(len(agree)))
    assert error.max() < 5
    assert abs(agree.mean() - 0.5) / (0.5 / np.sqrt(agree.size)) < 5


def test_neighbouring_keys_and_seeds_are_unrelated():
    """Keys that differ in a few bits of the last word, which a rollout uses all at once."""
    near = words(keys(jax.random.fold_in(key(), 1), 2**12), 16)
    for distance in (1, 2, 3, 32, 2**11):
        other = near[np.arange(2**12) ^ distance]
        assert_unrelated(near, other)
        assert_unrelated(near[:, :-1], other[:, 1:])  # not one stream, shifted
    seeded = words(jax.vmap(key)(jnp.arange(2**12)), 16)
    assert_unrelated(seeded[:-1], seeded[1:])
    assert_unrelated(seeded[:-1, :-1], seeded[1:, 1:])
    for many in (near, seeded):
        repeats = many.size - len(np.unique(many))
        assert repeats <= stats.poisson.ppf(1 - 1e-6, many.size**2 / 2**33)


# --- words ----------------------------------------------------------------------------------------


def test_words_repeat_as_often_as_chance_has_it():
    """A bijection of the counter would never repeat: n²/2³³ repeats are expected, 128 of 2²⁰."""
    drawn = np.asarray(jax.random.bits(key(3), (2**20,)))
    repeats = drawn.size - len(np.unique(drawn))
    low, high = stats.poisson.ppf([1e-6, 1 - 1e-6], 128)
    assert low <= repeats <= high


@pytest.mark.parametrize("each", [1, 2**10])
def test_every_byte_is_as_likely_as_any_other(each):
    drawn = words(jax.random.split(key(4), 2**20 // each), each)
    for place in range(4):
        counts = np.bincount(drawn.view(np.uint8).reshape(-1, 4)[:, place], minlength=256)
        assert 1e-5 < stats.chisquare(counts).pvalue < 1 - 1e-5


def test_uniform_and_normal_numbers():
    uniform = np.asarray(jax.random.uniform(key(5), (2**18,)))
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 1e-5
    normal = np.asarray(jax.random.normal(key(6), (2**18,)))
    assert stats.kstest(normal, "norm").pvalue > 1e-5
    for lag in (1, 2, 3, 16):
        correlation = np.corrcoef(uniform[:-lag], uniform[lag:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(uniform.size)
