"""What says that a value is there, or of which kind it is."""

import jax.numpy as jnp
import numpy as np
import pytest

from cosurfgs_jax.errors import required
from cosurfgs_jax.types import drawn, image_size_of, on_host


def test_a_value_that_is_there_passes():
    image = jnp.zeros((4, 5, 3))
    assert required(0, "count") == 0
    assert drawn(image) is image
    array = np.zeros(2)
    assert on_host(array) is array
    assert image_size_of(image) == (4, 5) and image_size_of(np.zeros((2, 3))) == (2, 3)


def test_a_missing_value_is_named():
    with pytest.raises(ValueError, match="Capture.root: expected a value, got None"):
        required(None, "Capture.root")
    with pytest.raises(ValueError, match="a map of RenderOutput"):
        drawn(None)
