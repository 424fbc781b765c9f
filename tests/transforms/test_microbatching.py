"""A batch in slices gives what the whole batch gives, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lossopt_jax as lo

microbatch = lo.transforms.microbatch


def loss(w, x, y):
    return jnp.mean((jnp.tanh(x @ w["a"]) @ w["b"] - y) ** 2)


def problem(rows, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    w = {"a": rng.normal(size=(3, 8)), "b": rng.normal(size=8)}
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (w, rng.normal(size=(rows, 3)), rng.normal(size=rows)))


@pytest.mark.parametrize("rows", [1, 4, 7, 8, 12, 13])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gradients_of_any_number_of_rows(rows, wrap, x64):
    args = problem(rows, jnp.float64)
    whole = jax.value_and_grad(loss)
    result = wrap(microbatch(whole, (1, 2), 4, "mean"))(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15), result, whole(*args))


@pytest.mark.parametrize("rows", [3, 4, 10])
def test_each_result_in_its_own_way(rows):
    x = jnp.arange(float(2 * rows)).reshape(2, rows)

    def fun(scale, x):
        return {"rows": (scale * x.T, x[0]), "sum": jnp.sum(x), "count": jnp.int32(x.shape[1]), "mean": jnp.mean(x)}

    ways = {"rows": "concat", "sum": "sum", "count": "sum", "mean": "mean"}
    result, expected = microbatch(fun, 1, 4, ways, in_axes=-1)(3.0, x), fun(3.0, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result, expected)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), result) == jax.tree.map(lambda a: (a.shape, a.dtype), expected)


def test_none_is_no_batch():
    result = microbatch(lambda x, y: jnp.sum(x["a"]), (0, 1), 2)({"a": jnp.arange(5.0), "b": None}, None)
    np.testing.assert_array_equal(result, 10)


def test_it_is_optax_s_where_the_sizes_divide():
    args = problem(12)
    way = optax.microbatching.AccumulationType
    with jax.numpy_dtype_promotion("standard"):
        expected = optax.microbatching.microbatch(jax.value_and_grad(loss), (1, 2), 4, way.SUM)(*args)
    result = microbatch(jax.value_and_grad(loss), (1, 2), 4)(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result, expected)


def test_half_precision_is_summed_in_float32():
    x = jnp.full((4096, 1), 1.0, jnp.bfloat16)
    result = microbatch(lambda x: jnp.sum(x, axis=0), 0, 1)(x)
    np.testing.assert_array_equal(result, 4096)  # in bfloat16 the sum stays at 256
    assert result.dtype == jnp.bfloat16


def test_it_composes():
    args = problem(10)
    sliced = microbatch(loss, (1, 2), 4, "mean")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        (jax.grad(sliced)(*args), jax.vmap(sliced, (None, None, 1))(*args[:2], jnp.stack([args[2]] * 2, 1))),
        (jax.grad(loss)(*args), jnp.full(2, loss(*args))),
    )


def test_the_memory_is_that_of_a_slice():
    w = jnp.ones((64, 512))
    x = jnp.ones((4096, 64))

    def gradient(w, x):
        return jax.grad(lambda w: jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ w.T) ** 2))(w)

    whole, slices = (
        jax.jit(f).lower(w, x).compile().memory_analysis().temp_size_in_bytes
        for f in (gradient, microbatch(gradient, 1, 128, "mean"))
    )
    assert slices < whole / 10


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: microbatch(jnp.sum, 0, 0), ValueError, "microbatch_size must be an integer ≥ 1"),
        (lambda x: microbatch(jnp.add, (0, 1), 2)(x, x[:2]), ValueError, "one number of rows, got 6 in '0', 2 in '1'"),
        (lambda x: microbatch(jnp.sum, 0, 4, "max")(x), ValueError, "accumulator must be among"),
        (lambda x: microbatch(jnp.sum, 0, 4, {"a": "sum"})(x), ValueError, "accumulator must be a prefix"),
        (lambda x: microbatch(jnp.sum, 0, 4, "concat")(x), ValueError, "have rows, got a scalar"),
        (lambda x: microbatch(lambda x: jnp.int32(1), 0, 4, "mean")(x), TypeError, "a mean must be of floating"),
        (lambda x: microbatch(jnp.sum, 1, 4)(x), ValueError, "argnums must name"),
        (lambda x: microbatch(jnp.add, (0, 1), 4, in_axes=(0,))(x, x), ValueError, "in_axes must have 2"),
        (lambda x: microbatch(jnp.sum, 0, 4, in_axes=1)(x), ValueError, "axis"),
    ],
)
def test_bad_calls_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(jnp.arange(6.0))
