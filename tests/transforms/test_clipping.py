"""Clips of gradients so long that the factor itself would vanish, and the functions that clips are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt_jax as lo

T = lo.transforms

LONG = {"w": jnp.array([[1.8e38, -0.6e38], [0.0, 1e20]]), "b": jnp.array([2.4e38, 1.0])}
CLIPS = {
    "clip_by_global_norm": (T.clip_by_global_norm, True),
    "clip_by_norm": (T.clip_by_norm, False),
    "correct_by_previous_gradient": (lambda c: T.correct_by_previous_gradient(gamma=0.0, max_norm=c), False),
    "adaptive_grad_clip": (lambda c: T.adaptive_grad_clip(c, axis=(0, 1)), False),
}


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("most", [1.0, 1e-3])
@pytest.mark.parametrize("name", CLIPS)
def test_a_norm_near_the_end_of_float32_is_clipped_to_the_bound(name, most, compiled):
    make, whole = CLIPS[name]
    tx = make(most)
    params = {"w": jnp.full((2, 2), 0.5), "b": jnp.full((2,), 0.5**0.5)}  # of norm 1
    update = jax.jit(tx.update) if compiled else tx.update
    clipped, _ = update(LONG, tx.init(params), params)
    for part, before in [(clipped, LONG)] if whole else [(clipped[k], LONG[k]) for k in LONG]:
        np.testing.assert_allclose(norm(part), most, rtol=1e-6)
        for u, g in zip(jax.tree.leaves(part), jax.tree.leaves(before), strict=True):
            exact = most * (np.asarray(g, np.float64) / norm(before))
            np.testing.assert_allclose(u, exact, rtol=1e-6, atol=1e-38)


def test_the_gradient_of_a_norm_near_the_end_of_float32():
    slope = jax.grad(T.global_norm)(LONG)
    np.testing.assert_allclose(norm(slope), 1, rtol=1e-6)


def test_private_gradients_near_the_end_of_float32_are_clipped_to_the_bound():
    tx = T.differentially_private_aggregate(1.0, 0.0, seed=0)
    params = jax.tree.map(jnp.zeros_like, LONG)
    examples = jax.tree.map(lambda g: jnp.stack([g, 0 * g]), LONG)
    total, _ = tx.update(examples, tx.init(params), params)
    np.testing.assert_allclose(norm(total), 0.5, rtol=1e-6)
