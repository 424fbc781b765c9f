"""The table of optimizers. `by_name` is the rate an optimizer gets that is asked for by its name alone."""

from lossopt_jax._core import Registry

registry = Registry("optimizer")
