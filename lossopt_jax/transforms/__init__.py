"""Gradient → update: rules, and what wraps and composes them."""

from lossopt_jax.transforms._adaptive import scale_by_adam, scale_by_amsgrad, scale_by_rms, scale_by_stddev
from lossopt_jax.transforms._averages import bias_correction, debias, trace
from lossopt_jax.transforms._base import (
    GradientTransformation,
    Hyperparameter,
    PartitionState,
    RuleState,
    WrapperState,
    apply_updates,
)
from lossopt_jax.transforms._chain import chain, named_chain
from lossopt_jax.transforms._clipping import clip, clip_by_global_norm, global_norm
from lossopt_jax.transforms._compile import compile_update
from lossopt_jax.transforms._groups import masked, partition
from lossopt_jax.transforms._hyperparams import get_hyperparams, get_slot, set_hyperparams
from lossopt_jax.transforms._lift import elementwise, leafwise, treewise, wrapper
from lossopt_jax.transforms._precision import master_weights, stochastic_rounding
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rule import Slot
from lossopt_jax.transforms._scaling import add_decayed_weights, scale, scale_by_learning_rate, scale_by_schedule
