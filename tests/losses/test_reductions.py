"""The only places where a batch is reduced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses


def difference(f, x, v, h=3e-5):
    """The derivative of f along v, to fourth order."""
    return (8 * (f(x + h * v) - f(x - h * v)) - f(x + 2 * h * v) + f(x - 2 * h * v)) / (12 * h)


V = np.arange(12.0, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("shape", [(), (4,), (4, 3)])
def test_weights_run_along_leading_axes(shape):
    w = np.random.default_rng(2).uniform(size=shape).astype(np.float32)
    full = np.broadcast_to(w.reshape(shape + (1,) * (2 - len(shape))), (4, 3))
    np.testing.assert_allclose(losses.mean(V, weights=w), np.average(V, weights=full), rtol=3e-7)
    np.testing.assert_allclose(losses.total(V, weights=w), (V * full).sum(), rtol=3e-7)
    np.testing.assert_allclose(
        losses.mean(V, weights=w, where=full > 0.4),
        np.average(V[full > 0.4], weights=full[full > 0.4]) if (full > 0.4).any() else 0,
        rtol=3e-7,
    )


@pytest.mark.parametrize("reduce", [losses.mean, losses.total])
@pytest.mark.parametrize("shape", [(3,), (1, 3), (4, 1), (4, 3, 1), (2,)])
def test_other_shapes_are_refused(reduce, shape):
    for mask in ({"where": np.ones(shape, bool)}, {"weights": np.ones(shape, np.float32)}):
        with pytest.raises(ValueError, match="leading axes"):
            reduce(V, **mask)
    with pytest.raises(TypeError, match="where must be boolean"):
        reduce(V, where=np.ones(4))


@pytest.mark.parametrize("reduce", [losses.mean, losses.total])
def test_nothing_is_zero(reduce):
    nothing = [
        (np.zeros((0,), np.float32), {}),
        (V, {"where": np.zeros(4, bool)}),
        (V * np.nan, {"where": np.zeros(4, bool)}),
        (V * np.nan, {"weights": np.zeros(4, np.float32)}),
    ]
    for values, mask in nothing:
        value, gradient = jax.jit(jax.value_and_grad(lambda v, mask=mask: reduce(v, **mask)))(values)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


def test_weights_have_their_gradient_at_zero(x64):
    values, w, v = np.array([1.0, 5.0, 2.0]), np.array([0.0, 1.0, 3.0]), np.array([0.3, -0.2, 0.1])
    for reduce in (losses.mean, losses.total):

        def f(w, reduce=reduce):
            return reduce(values, weights=w)

        np.testing.assert_allclose(jax.jvp(f, (w,), (v,))[1], difference(f, w, v), rtol=1e-8)


def test_reductions_are_float32_or_better(x64):
    for reduce in (losses.mean, losses.total):
        assert reduce(jnp.ones(4096, jnp.bfloat16)).dtype == jnp.float32
        assert reduce(np.ones(4)).dtype == jnp.float64
        assert reduce(jnp.ones(4, jnp.float32), weights=np.ones(4)).dtype == jnp.float64
    assert losses.total(jnp.ones(4097, jnp.bfloat16)) == 4097


def test_a_mean_is_finite_where_its_values_are():
    assert losses.mean(jnp.full((5, 3), 3e38)) == pytest.approx(3e38, rel=3e-7)
    assert losses.mean_squared_error(jnp.full(5, 1.8e19), jnp.zeros(5)) == pytest.approx(3.24e38, rel=3e-7)
