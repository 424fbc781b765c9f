"""Schedules: step → value in JAX's default float. Step 0 is the first update; past the end the last value stays."""

from lossopt_jax._core import StatefulSchedule
from lossopt_jax.schedules._curves import (
    constant_schedule,
    cosine_decay_schedule,
    exponential_decay,
    exponential_range,
    inverse_time_decay,
    linear_schedule,
    warmup_cosine_decay_schedule,
)
from lossopt_jax.schedules._lift import Schedule, registry
