"""What every room stands on: dtype policy, trees, static checks, registries, and fences around JAX versions."""

from lossopt_jax._core._checks import (
    AT_LEAST_ONE,
    COUNT,
    FRACTION,
    NONNEGATIVE,
    NONPOSITIVE,
    POSITIVE,
    RANGES,
    REAL,
    UNIT,
    Range,
    along_leading_axes,
    axes_of,
    bound_arguments,
    check_scalar,
    complaint,
    concrete,
)
from lossopt_jax._core._dtypes import (
    as_compute,
    as_default_float,
    compute_dtype,
    default_float,
    dtype_of,
    is_array_like,
    is_complex,
    is_float0,
    is_trainable,
    widest_float,
)
from lossopt_jax._core._jax import (
    CPU_FUSES_SUMS,
    HOST_MEMORY,
    bind_equation,
    cpu_compiler_options,
    cpu_cores,
    dependencies,
    holds_tracers,
    in_device_memory,
    in_host_memory,
    inlinable,
    is_tracer,
    keeps_host_memory,
    on_one_cpu,
    pallas_modules,
    rests_in_host_memory,
    standard_promotion,
    sums_apart,
    sums_in_one_loop,
    zeros_alike,
)
from lossopt_jax._core._random import leaf_seed, random_bits, random_normal
from lossopt_jax._core._registry import Registry
from lossopt_jax._core._trees import check_real_leaves, first_difference, leaf_paths, map_arrays, none_is_leaf
from lossopt_jax._core._types import Scalar, StatefulSchedule, accepts_keyword, comparable
