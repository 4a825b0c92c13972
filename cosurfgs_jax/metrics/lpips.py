"""LPIPS: how alike two pictures look to a network that was trained to tell objects apart. The
weights are the user's: this package carries none.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cosurfgs_jax.errors import InputError
from cosurfgs_jax.metrics.images import AnyArray

# Of the pictures, in [-1, 1], that the networks were trained on.
_MEAN = np.array([[[-0.030, -0.088, -0.188]]], np.float32)
_SPREAD = np.array([[[0.458, 0.448, 0.450]]], np.float32)
_EPSILON = 1e-10  # added to lengths of features, which may be 0
_SMALLEST = 32  # pixels of a side, of which the last layer has one left
_TRUNK_KEY = re.compile(r"(?:^|.*\.)(?:features|slice\d+)\.(\d+)\.(weight|bias)$")
_HEAD_KEY = re.compile(r"(?:^|.*\.)lins?\.?(\d+)(?:\.model)?(?:\.\d)?\.weight$")


class _Layer(NamedTuple):
    """A convolution with its ReLU, and what comes before and after it."""

    place: int  # in the list of the network's layers, which its file names it by
    stride: int = 1
    padding: int = 1
    pool: int = 0  # side of a maximum over steps of 2 before it; 0: none
    is_compared: bool = True


class _Trunk(NamedTuple):
    kernel: int  # side of the first convolution's, which tells the networks apart
    layers: tuple[_Layer, ...]


def _vgg_layers() -> tuple[_Layer, ...]:
    layers = []
    place = 0
    for block, count in enumerate((2, 2, 3, 3, 3)):
        for number in range(count):
            pool = 2 if block and not number else 0
            layers.append(_Layer(place, pool=pool, is_compared=number == count - 1))
            place += 2
        place += 1  # the maximum
    return tuple(layers)


_TRUNKS = {
    "AlexNet": _Trunk(
        11,
        (
            _Layer(0, stride=4, padding=2),
            _Layer(3, padding=2, pool=3),
            _Layer(6, pool=3),
            _Layer(8),
            _Layer(10),
        ),
    ),
    "VGG-16": _Trunk(3, _vgg_layers()),
}


class LpipsWeights(NamedTuple):
    """The weights of a network and of its heads.

    | field     | content                                                                     |
    |-----------|-----------------------------------------------------------------------------|
    | `kernels` | of each convolution, f32[out,in,h,w]                                        |
    | `biases`  | f32[out]                                                                    |
    | `heads`   | weights of the channels of each layer that is compared, f32[out], positive  |
    | `network` | name in the table of networks                                               |
    """

    kernels: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    heads: tuple[np.ndarray, ...]
    network: str


def weights_of(tables: list[Mapping[str, np.ndarray]], source: str) -> LpipsWeights:
    """Finds the weights of LPIPS in the states of networks as torch names them.

    Args:
        tables: names to arrays; together they have a trunk (`features.0.weight`, ..., or
            `net.slice1.0.weight`, ...) of AlexNet or VGG-16, and heads (`lin0.model.1.weight` or
            `lin0.weight`, ...). What else they have is left aside.
        source: the files, for messages.
    Raises:
        InputError: a weight is missing, is there twice, or fits no network.
    """
    trunk: dict[tuple[int, str], np.ndarray] = {}
    heads: dict[int, np.ndarray] = {}
    for table in tables:
        for key, value in table.items():
            found = _TRUNK_KEY.match(key)
            if found:
                trunk[int(found[1]), found[2]] = np.asarray(value, np.float32)
            found = _HEAD_KEY.match(key)
            if found:
                heads[int(found[1])] = np.asarray(value, np.float32).reshape(-1)
    first = trunk.get((0, "weight"))
    if first is None or not heads:
        what = "heads (lin0.model.1.weight, ...)"
        if first is None:
            what = "trunk (features.0.weight, ...)"
        raise InputError(
            f"{source}: expected the weights of a network and the heads of LPIPS, got no {what}; "
            "give both files, with a comma between"
        )
    network = next(
        (name for name, trunk in _TRUNKS.items() if first.shape[2:] == (trunk.kernel,) * 2), None
    )
    if network is None:
        raise InputError(
            f"{source}: expected the weights of {' or '.join(_TRUNKS)}, got a first convolution of "
            f"shape {first.shape}"
        )
    layers = _TRUNKS[network].layers
    _check(network, trunk, heads, source)
    return LpipsWeights(
        tuple(trunk[layer.place, "weight"] for layer in layers),
        tuple(trunk[layer.place, "bias"] for layer in layers),
        tuple(heads[number] for number in range(sum(layer.is_compared for layer in layers))),
        network,
    )


def _check(network: str, trunk: dict, heads: dict, source: str) -> None:
    """That all weights are there and fit each other."""
    channels = 3
    number = 0

    def expect(name: str, value: np.ndarray | None, shape: tuple[int | None, ...]) -> None:
        got: tuple[int, ...] = () if value is None else value.shape
        is_right = len(got) == len(shape) and all(
            side in (of_value, None) for of_value, side in zip(got, shape, strict=True)
        )
        if value is None or not is_right or not np.all(np.isfinite(value)):
            raise InputError(
                f"{source}: expected {name} of {network} as finite numbers of shape {shape}, got "
                f"{got or 'none'}; are these files of one network?"
            )

    for layer in _TRUNKS[network].layers:
        kernel = trunk.get((layer.place, "weight"))
        expect(f"features.{layer.place}.weight", kernel, (None, channels, None, None))
        channels = len(kernel) if kernel is not None else 0
        expect(f"features.{layer.place}.bias", trunk.get((layer.place, "bias")), (channels,))
        if layer.is_compared:
            expect(f"lin{number}", heads.get(number), (channels,))
            number += 1


def _features(image: Float[Array, "1 3 h w"], weights: LpipsWeights) -> list[Array]:
    """The compared layers' features, each of unit length over its channels."""
    found = []
    layers = _TRUNKS[weights.network].layers
    value = image
    for layer, kernel, bias in zip(layers, weights.kernels, weights.biases, strict=True):
        if layer.pool:
            value = jax.lax.reduce_window(
                value,
                -jnp.inf,
                jax.lax.max,
                window_dimensions=(1, 1, layer.pool, layer.pool),
                window_strides=(1, 1, 2, 2),
                padding="VALID",
            )
        padding = [(layer.padding, layer.padding)] * 2
        strides = (layer.stride, layer.stride)
        value = jax.lax.conv_general_dilated(value, jnp.asarray(kernel), strides, padding)
        value = jax.nn.relu(value + jnp.asarray(bias)[None, :, None, None])
        if layer.is_compared:
            length = jnp.sqrt(jnp.square(value).sum(axis=1, keepdims=True))
            found.append(value / (length + _EPSILON))
    return found


def lpips(
    image: Float[AnyArray, "h w 3"],
    truth: Float[AnyArray, "h w 3"],
    weights: LpipsWeights,
    mask: Bool[AnyArray, "h w"] | None = None,
    *,
    is_unscaled: bool = False,
) -> Float[Array, ""]:
    """Learned perceptual image patch similarity; 0 for equal images.

    Args:
        image: [H,W,3] in [0, 1]. Takes gradient.
        truth: [H,W,3] in [0, 1]. Takes gradient.
        weights: of the network and its heads.
        mask: [H,W], True = counts. Other pixels are black in both images.
        is_unscaled: the network gets [0, 1] in place of [-1, 1], which it was trained for: what the
            scripts of 3DGS and its relatives report, with VGG-16.
    Raises:
        InputError: images too small for the network.
    Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual
        metric", equation 1, with the scaling of its version 0.1.
    """
    height, width = image.shape[:2]
    if min(height, width) < _SMALLEST:
        raise InputError(
            f"LPIPS: expected images of at least {_SMALLEST} pixels a side, got {width}x{height}"
        )

    def prepared(values):
        values = jnp.asarray(values, jnp.float32)
        if mask is not None:
            values = values * mask[..., None].astype(jnp.float32)
        if not is_unscaled:
            values = 2 * values - 1
        values = (values - _MEAN) / _SPREAD
        return jnp.moveaxis(values, -1, 0)[None]

    total = jnp.float32(0)
    pairs = zip(
        _features(prepared(image), weights), _features(prepared(truth), weights), strict=True
    )
    for (ours, theirs), head in zip(pairs, weights.heads, strict=True):
        squared = jnp.square(ours - theirs) * jnp.asarray(head)[None, :, None, None]
        total += squared.sum(axis=1).mean()
    return total
