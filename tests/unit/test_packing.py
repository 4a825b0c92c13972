"""Numbers in one array come out as they went in, on the host and in a compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.distributed.packing import Packed

TREE = {
    "a": np.array([[1.5, -0.0], [np.nan, np.inf]], np.float32),
    "b": (np.int32(-7), np.bool_(True), None),
    "c": np.array([False, True]),
    "d": np.float32(1e-45),
    "e": np.arange(3, dtype=np.int32),
}


def assert_same_bits(got, expected) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_bits_come_out_as_they_went_in():
    parcel = Packed.pack(TREE)
    assert (
        isinstance(parcel.words, np.ndarray)
        and parcel.words.shape == (12,)
        and parcel.words.dtype == np.int32
    )
    assert_same_bits(parcel.open(), TREE)
    assert_same_bits(jax.jit(lambda parcel: parcel.open())(parcel), TREE)
    packed = jax.jit(Packed.pack)(TREE)
    np.testing.assert_array_equal(packed.words, parcel.words)
    assert packed.form == parcel.form and hash(packed.form) == hash(parcel.form)


def test_axes_in_front_stay_in_front():
    parcel = Packed.pack(TREE)
    several = Packed(np.stack([parcel.words] * 5), parcel.form)
    expected = jax.tree.map(lambda leaf: np.stack([leaf] * 5), TREE)
    assert_same_bits(several.open(), expected)
    assert_same_bits(jax.jit(lambda parcel: parcel.open())(several), expected)


def test_other_types_are_refused():
    for value in (np.zeros(3), np.zeros(3, np.uint8), np.int64(3)):
        with pytest.raises(TypeError, match=f"expected float32, int32, bool, got {value.dtype}"):
            Packed.pack({"a": np.float32(1), "b": value})


def test_programs_are_compiled_once_for_a_form():
    traced = []
    run = jax.jit(lambda parcel: traced.append(1) or parcel.open()["d"])
    for value in (1.0, 2.0):
        assert float(run(Packed.pack(TREE | {"d": np.float32(value)}))) == value
    run(Packed.pack({"d": jnp.float32(3)}))
    assert len(traced) == 2
