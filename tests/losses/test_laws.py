"""What every loss keeps, row by row of the registry; a new loss is a row of ROWS."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses

random = np.random.default_rng(0)
Z = random.normal(size=(4, 3)) * 2
P, Q = 1 / (1 + np.exp(-Z)), np.exp(Z) / np.exp(Z).sum(-1, keepdims=True)
Y, SOFT = random.normal(size=(4, 3)), random.uniform(size=(4, 3))
SIMPLEX, INDEX = SOFT / SOFT.sum(-1, keepdims=True), np.array([2, 0, 1, 2], np.int32)
CLASSES = np.array([[True, True, False], [True, True, True], [False, True, True], [False, True, True]])
SUBSET = np.array([1, 0, 1, 2], np.int32)

ROWS = {
    "squared_error": [(Z, Y, {})],
    "l2_loss": [(Z, Y, {})],
    "absolute_error": [(Z, Y, {})],
    "mean_squared_error": [(Z, Y, {})],
    "mean_absolute_error": [(Z, Y, {})],
    "sigmoid_binary_cross_entropy": [(Z, SOFT, {}), (Z, SOFT, {"label_smoothing": 0.2})],
    "binary_crossentropy": [
        (P, SOFT, {}),
        (P, SOFT, {"label_smoothing": 0.2}),
        (Z, SOFT, {"from_logits": True, "label_smoothing": 0.2}),
    ],
    "softmax_cross_entropy": [
        (Z, SIMPLEX, {}),
        (Z, SOFT, {"label_smoothing": 0.2}),
        (Z, SIMPLEX, {"where": CLASSES, "label_smoothing": 0.2}),
    ],
    "softmax_cross_entropy_with_integer_labels": [
        (Z, INDEX, {}),
        (Z, INDEX, {"ignore_index": 2, "label_smoothing": 0.2}),
        (Z, SUBSET, {"where": CLASSES, "label_smoothing": 0.2}),
    ],
    "categorical_crossentropy": [
        (Q, SIMPLEX, {}),
        (Q, SIMPLEX, {"label_smoothing": 0.2}),
        (Z, SIMPLEX, {"from_logits": True}),
    ],
    "sparse_categorical_crossentropy": [
        (Q, INDEX, {}),
        (Q, INDEX, {"ignore_index": 2}),
        (Z, INDEX, {"from_logits": True}),
    ],
}
CASES = [(name, *row) for name, rows in ROWS.items() for row in rows]
each_case = pytest.mark.parametrize(
    ("name", "predictions", "targets", "options"), CASES, ids=["-".join([c[0], *c[3]]) for c in CASES]
)
each_loss = pytest.mark.parametrize(
    ("name", "predictions", "targets"), [(n, *rows[0][:2]) for n, rows in ROWS.items()], ids=list(ROWS)
)


def cast(array, dtype=jnp.float32):
    array = np.asarray(array)
    return jnp.asarray(array, dtype if array.dtype == np.float64 else array.dtype)


def bind(name, targets, options, dtype=jnp.float32):
    return lambda p: losses.registry[name](p, cast(targets, dtype), **options)


def difference(f, x, v, h=3e-5):
    """The derivative of f along v, to fourth order."""
    return (8 * (f(x + h * v) - f(x - h * v)) - f(x + 2 * h * v) + f(x - 2 * h * v)) / (12 * h)


def test_registry_is_exports_is_table():
    exported = {name for name, value in vars(losses).items() if hasattr(value, "spec")}
    assert exported == set(losses.registry) == set(ROWS)


def test_names_and_specs():
    for name, entry in losses.registry.items():
        task, parameters = entry.spec.task, list(inspect.signature(entry).parameters)
        assert entry.spec.name == entry.__name__ == name
        assert (entry.spec.targets == "integer") == (task == "sparse")
        assert (entry.spec.logits is None) == ("from_logits" in parameters)
        assert (entry.spec.logits is False) == (task == "regression")
        assert losses.registry[name.upper().replace("_", "-")] is entry


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("mse", "mean_squared_error"),
        ("MSELoss", "mean_squared_error"),
        ("mae", "mean_absolute_error"),
        ("l1", "mean_absolute_error"),
        ("L1Loss", "mean_absolute_error"),
        ("bce", "binary_crossentropy"),
        ("binary_cross_entropy", "binary_crossentropy"),
        ("BCELoss", "binary_crossentropy"),
        ("BCEWithLogitsLoss", "sigmoid_binary_cross_entropy"),
        ("cce", "categorical_crossentropy"),
        ("scce", "sparse_categorical_crossentropy"),
        ("CrossEntropyLoss", "softmax_cross_entropy_with_integer_labels"),
    ],
)
def test_aliases(alias, name):
    assert losses.registry.canonical(alias) == name


@each_case
def test_vmap_is_batched(name, predictions, targets, options):
    p, t = cast(predictions), cast(targets)
    arrays = {k: v for k, v in options.items() if isinstance(v, np.ndarray)}
    static = {k: v for k, v in options.items() if k not in arrays}
    entry = losses.registry[name]
    each = jax.jit(jax.vmap(lambda p, t, arrays: entry(p, t, **static, **arrays)))(p, t, arrays)
    np.testing.assert_allclose(each, entry(p, t, **options), rtol=3e-7, atol=1e-8)


@each_case
def test_jit_is_eager(name, predictions, targets, options):
    f, p = bind(name, targets, options), cast(predictions)
    np.testing.assert_allclose(jax.jit(f)(p), f(p), rtol=3e-7, atol=1e-8)


@each_case
def test_gradient_is_the_finite_difference(name, predictions, targets, options, x64):
    f, v = jax.jit(bind(name, targets, options, jnp.float64)), np.random.default_rng(1).normal(size=predictions.shape)
    forward = jax.jit(lambda p: jax.jvp(f, (p,), (v,))[1])(predictions)
    np.testing.assert_allclose(forward, difference(f, predictions, v), rtol=1e-8, atol=1e-9)
    gradient = jax.jit(jax.grad(lambda p: f(p).sum()))(predictions)
    np.testing.assert_allclose(jnp.vdot(gradient, v), forward.sum(), rtol=1e-12)


@each_case
def test_hessian_is_the_finite_difference(name, predictions, targets, options, x64):
    f, v = bind(name, targets, options, jnp.float64), np.random.default_rng(1).normal(size=predictions.shape)
    g = jax.jit(jax.grad(lambda p: f(p).sum()))
    expected = difference(g, predictions, v)
    forward = jax.jit(lambda p: jax.jvp(g, (p,), (v,))[1])(predictions)
    np.testing.assert_allclose(forward, expected, rtol=1e-7, atol=1e-9)
    hessian = jax.jit(jax.hessian(lambda p: f(p).sum()))(predictions)
    np.testing.assert_allclose(jnp.tensordot(hessian, v, 2), forward, rtol=1e-12, atol=1e-13)


@each_case
def test_gradient_of_float_targets_is_the_finite_difference(name, predictions, targets, options, x64):
    if targets.dtype != np.float64:
        return
    v = np.random.default_rng(1).normal(size=targets.shape)

    f = jax.jit(lambda t: losses.registry[name](predictions, t, **options))
    forward = jax.jit(lambda t: jax.jvp(f, (t,), (v,))[1])(targets)
    np.testing.assert_allclose(forward, difference(f, targets, v), rtol=1e-8, atol=1e-9)


@each_case
def test_scan_is_the_loop(name, predictions, targets, options):
    p, t = cast(predictions), cast(targets)
    options = {k: v for k, v in options.items() if k != "where"}
    t = jnp.asarray(INDEX) if t.dtype == jnp.int32 else t
    value_and_grad = jax.jit(jax.value_and_grad(lambda p, t: losses.registry[name](p, t, **options).sum()))
    _, scanned = jax.lax.scan(lambda _, pt: (None, value_and_grad(*pt)), None, (p, t))
    for one, two in zip(scanned, jax.vmap(value_and_grad)(p, t), strict=True):
        np.testing.assert_allclose(one, two, rtol=3e-7, atol=1e-7)


@each_loss
def test_masked_is_dropped(name, predictions, targets):
    keep, bad = np.array([True, False, True, False]), predictions.copy()
    bad[1], bad[3] = np.nan, np.inf if losses.registry[name].spec.logits is not None else np.nan

    def reduced(p, t, **mask):
        return losses.mean(losses.registry[name](p, t), **mask)

    expected, g = jax.jit(jax.value_and_grad(reduced))(cast(predictions[keep]), cast(targets[keep]))
    for mask in ({"where": keep}, {"weights": keep.astype(np.float32)}):
        step = jax.jit(jax.value_and_grad(reduced))
        value, gradient = step(cast(bad), cast(targets), **mask)
        np.testing.assert_allclose(value, expected, rtol=3e-7)
        if "where" in mask:
            finite = step(cast(predictions), cast(targets), **mask)[1]
            np.testing.assert_allclose(finite[keep], g, rtol=3e-7)
            np.testing.assert_array_equal(finite[~keep], 0)
        np.testing.assert_allclose(gradient[keep], g, rtol=3e-7)


@each_loss
def test_extremes_are_finite(name, predictions, targets):
    spec = losses.registry[name].spec
    sizes = np.array([s * v for v in (0.0, 1e-30, 1e-4, 88.0, 1e4, 1e18) for s in (1, -1)])[:, None, None]
    low, high = (-np.inf, np.inf) if spec.logits is not None else (0, 1)
    p = cast(np.clip(sizes * np.sign(predictions - 0.1), low, high))
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(lambda p: bind(name, targets, {})(p).sum())))(p)
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert np.isfinite(gradients).all()


@each_loss
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_computed_in_float32(name, predictions, targets, dtype):
    f, half = jax.jit(bind(name, targets, {})), cast(predictions, dtype)
    assert f(half).dtype == jnp.float32
    # two programs, so exp may round its last bit either way; half precision would be off by thousands of these
    np.testing.assert_array_max_ulp(np.asarray(f(half)), np.asarray(f(half.astype(jnp.float32))), 2)
    gradient = jax.jit(jax.grad(lambda p: f(p).sum()))
    assert gradient(half).dtype == dtype
    exact, rounded = gradient(half.astype(jnp.float32)), gradient(half).astype(jnp.float32)
    np.testing.assert_allclose(rounded, exact, rtol=0.51 * float(jnp.finfo(dtype).eps), atol=1e-7)


@each_loss
def test_float64_stays(name, predictions, targets, x64):
    f = losses.registry[name]
    assert jax.eval_shape(f, predictions, targets).dtype == jnp.float64
    assert jax.eval_shape(f, cast(predictions), cast(targets)).dtype == jnp.float32
    assert jax.eval_shape(f, cast(predictions, jnp.bfloat16), cast(targets)).dtype == jnp.float32


@each_loss
def test_integer_predictions_are_refused(name, predictions, targets):
    for bad in (np.zeros((4, 3), np.int32), np.zeros((4, 3), bool), np.zeros((4, 3), complex)):
        with pytest.raises(TypeError, match=f"{name}: .* must be floating"):
            losses.registry[name](bad, cast(targets))


@each_loss
def test_integer_and_bool_targets_are_converted(name, predictions, targets):
    entry = losses.registry[name]
    if entry.spec.targets == "integer":
        for dtype in (bool, np.float32):
            with pytest.raises(TypeError, match="integer class indices"):
                entry(cast(predictions), targets.astype(dtype))
        for dtype in (np.uint8, np.int8, np.uint32):
            np.testing.assert_array_equal(
                entry(cast(predictions), targets.astype(dtype)), bind(name, targets, {})(cast(predictions))
            )
    else:
        for dtype in (bool, np.int32):
            t = (targets > 0.3).astype(dtype)
            np.testing.assert_array_equal(entry(cast(predictions), t), entry(cast(predictions), t.astype(np.float32)))


@each_loss
def test_lists_are_accepted(name, predictions, targets):
    entry = losses.registry[name]
    got = entry(cast(predictions).tolist(), cast(targets).tolist())
    np.testing.assert_array_equal(got, entry(cast(predictions), cast(targets)))


@each_loss
def test_shapes_of_results(name, predictions, targets):
    entry = losses.registry[name]
    got = jax.eval_shape(entry, cast(predictions), cast(targets))
    assert got.shape == ((4,) if entry.spec.event else (4, 3))
    assert entry(jnp.zeros((0, 3)), cast(targets)[:0]).shape == ((0,) if entry.spec.event else (0, 3))
    if "axis" in inspect.signature(entry).parameters:
        swapped = cast(predictions).T, cast(targets).T
        np.testing.assert_allclose(entry(*swapped, axis=0), entry(cast(predictions), cast(targets)), rtol=3e-7)


SHAPES = [
    ((4, 1), (4,)),
    ((4,), (4, 1)),
    ((4, 3), (3,)),
    ((4, 3), (4, 1)),
    ((4, 3), (1, 3)),
    ((4, 1), (4, 3)),
    ((3, 3), (3,)),
    ((1, 4), (4, 1)),
    ((4,), ()),
    ((4,), (2, 2)),
]


@each_loss
def test_mismatched_shapes_are_refused(name, predictions, targets):
    entry = losses.registry[name]
    integer = entry.spec.targets == "integer"
    dtype = jnp.int32 if integer else jnp.float32
    pairs = [((4, 3), s) for s in [(4, 1), (1,), (3,), (4, 3), (1, 4)]] + [((2, 4, 3), (1, 4))] if integer else SHAPES
    for one, two in pairs:
        with pytest.raises(ValueError, match=name) as caught:
            jax.eval_shape(entry, jnp.zeros(one), jnp.zeros(two, dtype))
        assert str(one) in str(caught.value)
        assert str(two) in str(caught.value)


@each_loss
def test_options_are_checked(name, predictions, targets):
    p, t = cast(predictions), cast(targets)
    wrong = {
        "axis": [(2, ValueError), (-3, ValueError), (1.0, TypeError), (True, TypeError)],
        "label_smoothing": [(-0.1, ValueError), (1.5, ValueError), ("0", TypeError)],
        "from_logits": [(1, TypeError), (None, TypeError)],
        "ignore_index": [(1.0, TypeError), (True, TypeError)],
        "where": [(np.ones((4, 3)), TypeError), (np.ones(3, bool), ValueError), (np.ones(4, bool), ValueError)],
    }
    for option in list(inspect.signature(losses.registry[name]).parameters)[2:]:
        for value, error in wrong[option]:
            with pytest.raises(error, match=f"{name}: {option} must"):
                losses.registry[name](p, t, **{option: value})


@each_loss
def test_a_missing_event_axis_is_refused(name, predictions, targets):
    entry = losses.registry[name]
    dtype = jnp.int32 if entry.spec.targets == "integer" else jnp.float32
    if entry.spec.event:
        with pytest.raises(ValueError, match="event axis"):
            entry(jnp.float32(0.5), jnp.zeros((), dtype))
    else:
        assert entry(jnp.float32(0.5), jnp.zeros((), dtype)).shape == ()


def test_regression_is_zero_at_the_optimum():
    for name in ("squared_error", "l2_loss", "absolute_error", "mean_squared_error", "mean_absolute_error"):
        value, gradient = jax.value_and_grad(lambda p, name=name: bind(name, Y, {})(p).sum())(cast(Y))
        np.testing.assert_array_equal(value, 0)
        np.testing.assert_array_equal(gradient, 0)
    for name in ("squared_error", "l2_loss"):
        np.testing.assert_array_equal(losses.registry[name](cast(Z)), losses.registry[name](cast(Z), jnp.zeros((4, 3))))


def test_integer_labels_are_one_hot_labels():
    hot = jax.nn.one_hot(INDEX, 3)
    pairs = [
        (losses.softmax_cross_entropy_with_integer_labels, losses.softmax_cross_entropy, Z),
        (losses.sparse_categorical_crossentropy, losses.categorical_crossentropy, Q),
    ]
    for sparse, dense, p in pairs:
        np.testing.assert_array_equal(sparse(cast(p), INDEX), dense(cast(p), hot))


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
