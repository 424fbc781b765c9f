"""Arithmetic, measures and searches on trees, under optax's names.

A leaf that is None stays None, and every function says by its path which leaf does not fit. Nothing is rounded to half
precision on the way.
"""

from lossopt_jax.transforms.tree._arithmetic import add, add_scale, clip, conj, div, mul, real, scale, sub, where
from lossopt_jax.transforms.tree._making import (
    batch_shape,
    cast,
    cast_like,
    dtype,
    full_like,
    ones_like,
    random_like,
    split_key_like,
    unwrap_random_key_data,
    zeros_like,
)
from lossopt_jax.transforms.tree._moments import (
    bias_correction,
    update_infinity_moment,
    update_moment,
    update_moment_per_elem_norm,
)
from lossopt_jax.transforms.tree._reductions import allclose, max, min, norm, size, sum, vdot
from lossopt_jax.transforms.tree._search import NamedTupleKey, get, get_all_with_path, set
from lossopt_jax.transforms.tree._states import map_params
