"""The table of transforms."""

from lossopt_jax._core import Registry

registry = Registry("transform")
