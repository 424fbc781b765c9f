"""Functions of matrices by products: singular values, stacks, sizes, and what they refuse; trees seen otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers

# As published with the paper, for five steps from 0.001.
PUBLISHED = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def polar(x):
    u, _, v = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return u @ v


def test_polar_express_is_the_published_sequence():
    np.testing.assert_allclose(T.polar_express_coefficients(5), PUBLISHED, rtol=1e-7)


@pytest.mark.parametrize("safety", [1.0, 1.01, 1.02])
@pytest.mark.parametrize("least", [1e-4, 1e-3, 0.1, 0.9])
def test_polar_express_leads_every_singular_value_to_one(least, safety):
    x = np.geomspace(least, 1, 1001)
    for a, b, c in T.polar_express_coefficients(12, least=least, safety=safety):
        x = a * x + b * x**3 + c * x**5
    np.testing.assert_allclose(x, 1, atol=1e-7)


@pytest.mark.parametrize("kind", ["frobenius", "spectral", "schatten"])
@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (2, 3, 6, 6), (1, 4)])
def test_many_steps_lead_to_the_polar_factor(shape, kind):
    x = random(*shape)
    found = T.orthogonalize_via_newton_schulz(x, "polar_express", 12, kind)
    np.testing.assert_allclose(found, polar(x), atol=2e-6)


@pytest.mark.parametrize("kind", ["frobenius", "spectral", "aol", "schatten"])
@pytest.mark.parametrize("scale", [2.0**100, 2.0**-100])
def test_neither_size_overflows_nor_vanishes(scale, kind):
    x = random(4, 6)
    expected = T.orthogonalize_via_newton_schulz(x, preconditioning=kind, eps=0.0)
    np.testing.assert_array_equal(T.orthogonalize_via_newton_schulz(scale * x, preconditioning=kind, eps=0.0), expected)
    np.testing.assert_array_equal(T.orthogonalize_via_newton_schulz(0 * x, preconditioning=kind, eps=0.0), 0)
    assert np.isnan(T.orthogonalize_via_newton_schulz(x.at[1, 2].set(jnp.nan), preconditioning=kind)).all()


def test_half_precision_is_computed_in_float32():
    x = random(4, 6).astype(jnp.bfloat16)
    found = T.orthogonalize_via_newton_schulz(x, "polar_express", 12)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), polar(x.astype(jnp.float32)), atol=2**-8)


def test_stacked_is_each_by_itself():
    tree = {"a": random(3, 4), "b": [random(3, 4, seed=1), None, random(2, 2, seed=2)], "c": random(3, 4, seed=3)}

    def function(x):
        return T.orthogonalize_via_newton_schulz(x), jnp.sum(x * x, (-2, -1))

    found, one = jax.jit(lambda tree: T.map_stacked(function, tree))(tree), jax.tree.map(function, tree)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    text = jax.jit(lambda tree: T.map_stacked(function, tree)).lower(tree).as_text()
    assert text.count("stablehlo.while") == 1  # three leaves of one shape share a program
    gpu = jax.jit(lambda tree: T.map_stacked(function, tree)).trace(tree).lower(lowering_platforms=("cuda",)).as_text()
    assert "tensor<3x3x4xf32>" in gpu
    assert "stablehlo.while" not in gpu


def test_inverse_roots_of_a_stack_are_those_of_each():
    x = random(2, 3, 4, 6)
    stack = x @ jnp.swapaxes(x, -1, -2)
    roots, errors = T.matrix_inverse_pth_root(stack, 4)
    assert errors.shape == (2, 3)
    for index in np.ndindex(2, 3):
        values, vectors = np.linalg.eigh(np.asarray(stack[index], np.float64))
        values += 1e-6 * values.max()
        np.testing.assert_allclose(roots[index], vectors * values**-0.25 @ vectors.T, rtol=1e-3, atol=1e-4)


def test_muon_on_a_convolution_and_one_program_for_equal_kernels():
    def axes(shape):
        return (0, 1, 2), (3,)

    x = random(2, 2, 3, 5)
    tx = T.scale_by_muon("polar_express", 12, nesterov=False, matrix_axes=axes)
    found, _ = tx.update(x, tx.init(x))
    np.testing.assert_allclose(found, polar(x.reshape(12, 5)).reshape(x.shape), atol=2e-6)
    turned = T.scale_by_muon("polar_express", 12, nesterov=False, matrix_axes=lambda shape: ((3,), (1, 2)))
    found, _ = turned.update(x, turned.init(x))
    expected = polar(x.transpose(0, 3, 1, 2).reshape(2, 5, 6)).reshape(2, 5, 2, 3).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_apollo_keeps_going_after_zeros_and_limits_growth():
    params = {"w": random(6, 4)}
    tx = T.scale_by_apollo(2, base_optimizer=T.identity())
    state = tx.init(params)
    for size in (0.0, 1.0, 1000.0):
        updates, state = tx.update({"w": size * random(6, 4, seed=1)}, state, params)
        lengths = np.linalg.norm(updates["w"])
        if size == 0.0:
            assert lengths == 0
        elif size == 1.0:
            first = lengths
            assert first > 0.1
        else:
            np.testing.assert_allclose(lengths, 1.01 * first, rtol=1e-5)


def test_projections_are_renewed_and_do_not_depend_on_other_leaves():
    g = random(6, 4)

    def path(params, count):
        tx = T.scale_by_apollo(2, 2, seed=3)
        state, found = tx.init(params), []
        for _ in range(count):
            updates, state = tx.update(params, state, params)
            found.append(updates["w"])
        return found

    alone, beside = path({"w": g}, 3), path({"a": g, "w": g}, 3)
    np.testing.assert_array_equal(alone, beside)
    assert np.abs(alone[2] / alone[1] - 1).max() > 0.01


def test_what_members_see_is_sharded_as_the_parameter():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    params = {"w": jax.device_put(random(8, 16), NamedSharding(mesh, PartitionSpec("x", "y")))}
    for tx, spec in (
        (T.scale_by_galore(2), (None, "x")),  # of [8, 16] the longer axis is projected: [8, r]
        (T.scale_by_galore(2, side="shorter"), (None, "y")),
    ):
        mu = lo.get_slot(tx.init(params), "mu")["w"]
        kept = tuple(name for name in mu.sharding.spec if name)
        assert kept == spec[1:]
        shardings = lo.training.state_sharding(tx, params)
        assert tuple(name for name in lo.get_slot(shardings, "mu")["w"].spec if name) == kept


def test_what_is_refused():
    with pytest.raises(ValueError, match="members must not need the parameters"):
        T.scale_by_galore(base_optimizer=O.adamw(0.1))
    for build, words in (
        (lambda: T.scale_by_galore(0), "rank must be an integer ≥ 1"),
        (lambda: T.scale_by_galore(side="left"), "side must be 'longer' or 'shorter'"),
        (lambda: T.scale_by_apollo(per="row"), "per must be 'channel' or 'tensor'"),
        (lambda: T.polar_express_coefficients(5, least=0.0), r"least must be in \(0, 1\)"),
        (lambda: T.polar_express_coefficients(5, safety=0.9), "safety must be ≥ 1"),
        (lambda: T.orthogonalize_via_newton_schulz(jnp.ones(3)), "x must have two axes or more"),
        (lambda: T.orthogonalize_via_newton_schulz(jnp.eye(2), "best"), "ns_coeffs must be among"),
        (lambda: T.orthogonalize_via_newton_schulz(jnp.eye(2), (1.0, 2.0)), "ns_coeffs must be three numbers"),
        (
            lambda: T.orthogonalize_via_newton_schulz(jnp.eye(2), preconditioning="none"),
            "preconditioning must be among",
        ),
        (lambda: T.scale_by_muon(matrix_axes=lambda s: ((0,), (0,))).update(*_muon_on(jnp.eye(2))), "share no axis"),
    ):
        with pytest.raises(ValueError, match=words):
            build()
    with pytest.raises(TypeError, match="tree must hold arrays"):
        T.map_stacked(lambda x: x, {"a": "b"})
    with pytest.raises(ValueError, match="pack_small: inner must hold elementwise and treewise"):
        lo.pack_small(T.scale_by_muon())


def _muon_on(x):
    return x, T.scale_by_muon().init(x)


def test_a_complex_leaf_is_two_for_what_sees_where_leaves_end():
    z, g = (jax.lax.complex(random(3, 4, seed=s), random(3, 4, seed=s + 1)) for s in (0, 2))
    inner = T.scale_by_trust_ratio()
    found, _ = T.split_real_and_imaginary(inner).update(
        {"z": g}, T.split_real_and_imaginary(inner).init({"z": z}), {"z": z}
    )
    for part in (jnp.real, jnp.imag):
        expected, _ = inner.update(part(g), inner.init(part(z)), part(z))
        np.testing.assert_allclose(part(found["z"]), expected, rtol=1e-6)


def test_flatten_sees_one_vector():
    params = {"w": random(2, 3), "n": 3, "b": random(4, seed=1), "half": random(3, seed=2).astype(jnp.bfloat16)}
    grads = {"w": random(2, 3, seed=4), "n": None, "b": random(4, seed=5), "half": params["half"]}
    inner = lo.chain(T.clip_by_block_rms(0.1), T.scale_by_adam())
    tx = T.flatten(inner)
    updates, state = tx.update(grads, tx.init(params), params)
    vector = jnp.concatenate([grads["b"], grads["w"].ravel()])
    expected, _ = inner.update(vector, inner.init(vector), vector)
    np.testing.assert_allclose(updates["b"], expected[:4], rtol=1e-6)
    np.testing.assert_allclose(updates["w"].ravel(), expected[4:], rtol=1e-6)
    assert updates["half"].dtype == jnp.bfloat16
    assert set(lo.get_slot(state, "mu")) == {"float32", "bfloat16"}
    with pytest.raises(ValueError, match="the gradient at 'b' must be an array"):
        tx.update(grads | {"b": None}, state, params)
