"""Losses of ordered classes beside other forms of the same models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses

generator = np.random.default_rng(0)


def test_coral_is_the_sum_of_binary_entropies_of_the_thresholds(x64):
    torch = pytest.importorskip("torch")
    z, y, weight = generator.normal(size=(7, 4)), generator.integers(0, 5, 7), generator.uniform(size=4)
    levels = (y[:, None] > np.arange(4)).astype(float)
    costs = torch.nn.functional.binary_cross_entropy_with_logits(*map(torch.tensor, (z, levels)), reduction="none")
    np.testing.assert_allclose(losses.coral_loss(z, y), costs.sum(-1), rtol=1e-12)
    got = losses.coral_loss(z.T, y, axis=0, threshold_weight=weight)
    np.testing.assert_allclose(got, (costs.numpy() * weight).sum(-1), rtol=1e-12)


def test_cumulative_link_is_the_likelihood_of_an_interval(x64):
    scores, cuts = generator.normal(size=6) * 3, np.array([-1.5, 0.2, 0.9])
    logits = scores[:, None] - cuts
    total = 0
    for y in range(4):
        cdf = 1 / (1 + np.exp(-(np.concatenate([[-np.inf], cuts, [np.inf]]) - scores[:, None])))
        expected = -np.log(cdf[:, y + 1] - cdf[:, y])
        labels = np.full(6, y)
        np.testing.assert_allclose(losses.cumulative_link_loss(logits, labels), expected, rtol=1e-9)
        np.testing.assert_allclose(losses.cumulative_link_loss(logits.T, labels, axis=0), expected, rtol=1e-9)
        total = total + np.exp(-losses.cumulative_link_loss(logits, labels))
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_two_classes_are_the_binary_entropy():
    z, y = jnp.array([[-3.0], [0.5]]), np.array([1, 0])
    expected = losses.sigmoid_binary_cross_entropy(z[:, 0], y)
    np.testing.assert_array_equal(losses.coral_loss(z, y), expected)
    np.testing.assert_array_equal(losses.cumulative_link_loss(z, y), expected)


def test_what_is_no_interval_and_no_class():
    step = jax.jit(jax.vmap(jax.value_and_grad(losses.cumulative_link_loss)))
    z = jnp.array([[1.0, 1.0], [1.0, 2.0], [2.0, 1.0], [2.0, 1.0]])
    value, gradient = step(z, jnp.array([1, 1, 3, 1]))
    np.testing.assert_array_equal(np.isnan(value), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(gradient).any(1), [False, True, True, False])
    assert 69 < value[0] < 72
    with pytest.raises(ValueError, match=r"coral_loss: labels must be in \[0, 3\), got 3"):
        losses.coral_loss(z, np.array([1, 1, 3, 1]))


def test_a_model_of_ordered_classes_is_found():
    """Full-batch descent on the data of a known model finds its cutpoints."""
    x = np.linspace(-3, 3, 4001)
    cuts = np.array([-1.0, 0.5, 2.0])
    noise = np.random.default_rng(1).logistic(size=x.size)
    y = (1.5 * x + noise)[:, None] > cuts

    def cost(params):
        logits = params["slope"] * x[:, None].astype(np.float32) - params["cuts"]
        return losses.mean(losses.cumulative_link_loss(logits, y.sum(1)))

    @jax.jit
    def descend(params):
        def step(_, params):
            return jax.tree.map(lambda p, g: p - 1.0 * g, params, jax.grad(cost)(params))

        return jax.lax.fori_loop(0, 600, step, params)

    found = descend({"slope": jnp.zeros((1, 1)), "cuts": jnp.array([[-1.0, 0.0, 1.0]])})
    np.testing.assert_allclose(found["slope"], 1.5, atol=0.1)
    np.testing.assert_allclose(found["cuts"][0], cuts, atol=0.15)
