"""Adaptive softmax beside torch's, and what its chunks leave out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses

generator = np.random.default_rng(0)
LABELS = np.array([0, 25, 3, 9, 4, 29, 11, 2, 10, 5, 24])
H = generator.normal(size=(11, 8))


def params_of(bias=True):
    return losses.adaptive_softmax_init(jax.random.key(0), 8, [5, 10, 25, 30], div_value=2.0, head_bias=bias)


@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_torch_s(bias, chunk, x64):
    torch = pytest.importorskip("torch")
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params_of(bias))
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(8, 30, [5, 10, 25], div_value=2.0, head_bias=bias).double()
    state = {"head.weight": params["head"].T}
    state |= {f"tail.{i}.{j}.weight": w.T for i, tail in enumerate(params["tails"]) for j, w in enumerate(tail)}
    state |= {"head.bias": params["head_bias"]} if bias else {}
    theirs.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in state.items()})
    h = torch.tensor(H, requires_grad=True)
    output, loss = theirs(h, torch.tensor(LABELS))
    loss.backward()

    def ours(h, params):
        return losses.adaptive_softmax_loss(h, LABELS, **params, chunk_size=chunk)

    np.testing.assert_allclose(ours(H, params), -output.detach().numpy(), rtol=1e-12)
    of_h, of_params = jax.jit(jax.grad(lambda *a: ours(*a).mean(), (0, 1)))(H, params)
    np.testing.assert_allclose(of_h, h.grad.numpy(), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(of_params["head"].T, theirs.head.weight.grad.numpy(), rtol=1e-10, atol=1e-14)
    for (down, up), tail in zip(of_params["tails"], theirs.tail, strict=True):
        np.testing.assert_allclose(down.T, tail[0].weight.grad.numpy(), rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(up.T, tail[1].weight.grad.numpy(), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(
        losses.adaptive_log_softmax(H, **params), theirs.log_prob(h).detach().numpy(), rtol=1e-12
    )


def test_batches_are_flat_and_vmap_is_the_loop():
    h, params, labels = H[:10].reshape(2, 5, 8).astype(np.float32), params_of(), LABELS[:10].reshape(2, 5)
    flat = losses.adaptive_softmax_loss(h.reshape(10, 8), labels.reshape(10), **params)
    batched = losses.adaptive_softmax_loss(h, labels, **params)
    mapped = jax.vmap(lambda h, y: losses.adaptive_softmax_loss(h, y, **params))(h, labels)
    for got in (batched, mapped):
        np.testing.assert_allclose(got.reshape(10), flat, rtol=1e-6)
    assert losses.adaptive_softmax_loss(h[:0], labels[:0], **params).shape == (0, 5)


def test_ignored_unknown_and_half():
    h, params = jnp.asarray(H, jnp.float32).at[1].set(jnp.nan), params_of()
    labels = jnp.asarray(LABELS).at[1].set(-1).at[2].set(30)

    @jax.jit
    def step(h, labels):
        def each(h, y):
            return losses.adaptive_softmax_loss(h[None], y[None], **params, ignore_index=-1)[0]

        return jax.vmap(jax.value_and_grad(each))(h, labels)

    value, gradient = step(h, labels)
    np.testing.assert_array_equal(np.isnan(value), np.arange(11) == 2)
    np.testing.assert_array_equal(np.isnan(gradient).all(1), np.arange(11) == 2)
    assert value[1] == 0
    np.testing.assert_array_equal(gradient[1], 0)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (jnp.asarray(H), params))
    got = losses.adaptive_softmax_loss(low[0], LABELS, **low[1])
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, losses.adaptive_softmax_loss(H.astype(np.float32), LABELS, **params), rtol=2e-2)


def test_a_chunk_computes_its_own_clusters_only():
    """Tokens of frequent classes never touch a tail: one full of NaN changes nothing."""
    params = params_of()
    spoiled = params | {"tails": [params["tails"][0], *((d * jnp.nan, u) for d, u in params["tails"][1:])]}
    h, labels = H.astype(np.float32), np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9])
    for order in (labels, labels[::-1]):
        got, expected = (losses.adaptive_softmax_loss(h, order, **p, chunk_size=2) for p in (spoiled, params))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": LABELS + 1}, ValueError, r"labels must be in \[0, 30\), got 30"),
        ({"labels": LABELS[:3]}, ValueError, "labels must have the shape of hidden"),
        ({"labels": LABELS * 1.0}, TypeError, "labels must be integer"),
        ({"head": np.ones((8, 2)), "head_bias": None}, ValueError, "head must have a column per frequent class"),
        ({"head": np.ones((7, 8))}, ValueError, r"head must be \[D, V\] with D = 8"),
        ({"head_bias": np.ones(3)}, ValueError, r"head_bias must have the shape \(8,\)"),
        ({"tails": [np.ones((8, 3))]}, TypeError, r"tails\[0\] must be a pair"),
        ({"tails": [(np.ones((8, 3)), np.ones((2, 4)))]}, ValueError, r"tails\[0\] must be of shapes \[D, R\] and"),
        ({"tails": [(np.ones((8, 3), int), np.ones((3, 4)))]}, TypeError, r"tails\[0\] must be floating"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be an integer ≥ 1"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=f"adaptive_softmax_loss: {message}"):
        losses.adaptive_softmax_loss(**({"hidden": H, "labels": LABELS} | params_of() | change))


def test_bad_cutoffs():
    with pytest.raises(ValueError, match="adaptive_softmax_init: cutoffs must rise from 1"):
        losses.adaptive_softmax_init(jax.random.key(0), 8, [5, 5, 10])
