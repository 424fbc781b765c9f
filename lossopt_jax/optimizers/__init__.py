"""Recipes: chains with good defaults. No arithmetic lives here."""

from lossopt_jax.optimizers._adaptive import adam, adamw, amsgrad, rmsprop
from lossopt_jax.optimizers._gradient_descent import sgd
from lossopt_jax.optimizers._registry import registry
