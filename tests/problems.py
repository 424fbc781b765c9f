"""Small networks that several tests train."""

import jax
import jax.numpy as jnp


def linear(params, x):
    return x @ params["w"] + params["b"][None]


def weights(inputs, outputs, seed=0):
    return {"w": 0.1 * jax.random.normal(jax.random.key(seed), (inputs, outputs)), "b": jnp.zeros(outputs)}
