"""Adapters to other libraries, each imported inside the function that needs it."""

from lossopt_jax.interop._optax import to_optax
