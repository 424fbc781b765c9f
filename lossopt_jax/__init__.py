"""Losses, optimizers, metrics and learning rates for JAX: exact, fast, composable."""

from lossopt_jax import interop, keras, losses, metrics, optimizers, schedules, training, transforms
from lossopt_jax._core import cpu_compiler_options
from lossopt_jax.training import TrainState, compile
from lossopt_jax.transforms import (
    GradientTransformation,
    apply_updates,
    by_path,
    chain,
    compile_update,
    compress_state,
    freeze,
    get_hyperparams,
    get_measurements,
    get_slot,
    kahan,
    masked,
    master_weights,
    named_chain,
    offload_state,
    pack_small,
    partition,
    set_hyperparams,
    stochastic_rounding,
    tree,
)

__version__ = "0.1.0"
