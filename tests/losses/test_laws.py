"""What every loss keeps, row by row of the registry; a new loss is a row in tests/loss_rows.

Two programs per case, one in float32 and one in float64, compute whatever the laws look at.
"""

import contextlib
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_rows import INDEX, ROWS, Q, Y, Z

from lossopt_jax import losses
from lossopt_jax._core import Scalar

H = 3e-5
SHIFTS = np.arange(-2, 3) * H
SLOPE = np.array([1, -8, 0, 8, -1]) / (12 * H)
KEEP = np.array([True, False, True, False])


@contextlib.contextmanager
def doubles():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def cast(array, dtype=jnp.float32):
    array = np.asarray(array)
    return jnp.asarray(array, dtype if array.dtype == np.float64 else array.dtype)


def along(values):
    """The derivative of what five shifts gave, to fourth order."""
    return np.tensordot(SLOPE, np.asarray(values), 1)


def near(one, two, apart):
    """Two programs of the same maths: within some last places of the largest number."""
    np.testing.assert_allclose(one, two, rtol=5e-7, atol=apart * np.abs(two).max(initial=0))


class Case:
    """A loss, its arrays by argument name with predictions and targets first, and its other options."""

    def __init__(self, name: str, predictions: Any, targets: Any, options: dict[str, Any]) -> None:
        self.name, self.row, self.loss, self.spec = name, ROWS[name], losses.registry[name], losses.registry[name].spec
        first, second = list(inspect.signature(self.loss).parameters)[:2]
        given = {first: predictions, second: targets, **options}
        self.arrays = {k: v for k, v in given.items() if isinstance(v, np.ndarray)}
        self.static = {k: v for k, v in given.items() if k not in self.arrays}
        self.first, self.predictions, self.targets = first, predictions, targets

    def cast(self, dtype=jnp.float32) -> dict[str, jax.Array]:
        return {k: cast(v, dtype) for k, v in self.arrays.items()}

    def call(self, arrays: dict[str, Any]) -> jax.Array:
        return self.loss(**arrays, **self.static)

    def batch_axes(self) -> dict[str, int | None]:
        """Over which axis of each array examples run; None for one number per class."""
        per_class = {a for a, values in self.spec.arrays.items() if values.shape == "class"}
        return {k: None if k in per_class else 0 for k in self.arrays}

    def kept(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {k: v if self.batch_axes()[k] is None else v[KEEP] for k, v in arrays.items()}

    def of(self, arrays: dict[str, Any], argument: str | None = None) -> Any:
        """The loss as a function of one array."""
        return lambda x: self.call({**arrays, argument or self.first: x})

    def value_and_grad(self, arrays: dict[str, Any]) -> Any:
        return jax.value_and_grad(lambda p: self.of(arrays)(p).sum())

    @functools.cached_property
    def single(self) -> dict[str, Any]:
        def everything(arrays):
            axes = self.batch_axes()
            per_class = {k: v for k, v in arrays.items() if axes[k] is None}
            examples = {k: v for k, v in arrays.items() if axes[k] == 0}

            def step(_, example):
                return None, self.value_and_grad({**example, **per_class})(example[self.first])

            return {
                "value": self.call(arrays),
                "vmap": jax.vmap(self.call, (axes,))(arrays),
                "each": jax.vmap(lambda e: self.value_and_grad({**e, **per_class})(e[self.first]))(examples),
                "scan": jax.lax.scan(step, None, examples)[1],
            }

        return jax.jit(everything)(self.cast())

    @functools.cached_property
    def double(self) -> dict[str, Any]:
        def everything(arrays, directions):
            p, v = arrays[self.first], directions[self.first]
            gradient = jax.grad(lambda p: self.of(arrays)(p).sum())
            result = {
                "gradient": gradient(p),
                "gradients": jax.vmap(lambda h: gradient(p + h * v))(SHIFTS),
                "hvp": jax.jvp(gradient, (p,), (v,))[1],
            }
            for k, v in directions.items():
                f, x = self.of(arrays, k), arrays[k]
                result[f"values of {k}"] = jax.vmap(lambda h, f=f, x=x, v=v: f(x + h * v))(SHIFTS)
                result[f"jvp of {k}"] = jax.jvp(f, (x,), (v,))[1]
            return result

        with doubles():
            generator = np.random.default_rng(1)
            directions = {k: generator.normal(size=v.shape) for k, v in self.arrays.items() if v.dtype == np.float64}
            computed = jax.jit(everything)(self.cast(jnp.float64), directions)
            return {"directions": directions, **jax.tree.map(np.asarray, computed)}


CASES = [(name, *case) for name, row in ROWS.items() for case in row.cases]


@pytest.fixture(scope="module", params=CASES, ids=["-".join([c[0], *c[3]]) for c in CASES])
def case(request):
    return Case(*request.param)


@pytest.fixture(scope="module", params=ROWS)
def first(request):
    """The first case of each loss."""
    return Case(request.param, *ROWS[request.param].cases[0])


def test_registry_is_exports_is_table():
    exported = {value.spec.name for value in vars(losses).values() if hasattr(value, "spec")}
    assert exported == set(losses.registry) == set(ROWS)


def test_names_and_specs(first):
    entry, parameters = first.loss, list(inspect.signature(first.loss).parameters)
    assert first.spec.name == entry.__name__ == first.name
    assert (first.spec.targets == "integer") == (first.spec.task in ("sparse", "ordinal"))
    assert (first.spec.logits is None) == ("from_logits" in parameters)
    assert losses.registry[first.name.upper().replace("_", "-")] is entry
    assert all(losses.registry[alias] is entry for alias in first.row.aliases)


def test_vmap_is_batched(case):
    near(case.single["vmap"], case.single["value"], case.row.apart)


def test_jit_is_eager(case):
    near(case.single["value"], case.call(case.cast()), case.row.apart)


def test_scan_is_the_loop(case):
    for one, two in zip(case.single["scan"], case.single["each"], strict=True):
        near(one, two, case.row.apart)


def test_derivatives_are_the_finite_differences(case):
    for argument in case.double["directions"].keys() - set(case.row.detached):
        values, forward = (case.double[f"{kind} of {argument}"] for kind in ("values", "jvp"))
        np.testing.assert_allclose(forward, along(values), rtol=1e-8, atol=1e-9, err_msg=argument)


def test_gradient_is_the_derivative(case):
    forward, v = case.double[f"jvp of {case.first}"], case.double["directions"][case.first]
    np.testing.assert_allclose(np.vdot(case.double["gradient"], v), forward.sum(), rtol=1e-12, atol=1e-14)


def test_hessian_is_the_finite_difference(case):
    size = np.abs(case.double["gradient"]).max()
    np.testing.assert_allclose(case.double["hvp"], along(case.double["gradients"]), rtol=1e-7, atol=1e-9 * max(1, size))


def test_masked_is_dropped(first):
    bad = first.predictions.copy()
    bad[1], bad[3] = np.nan, np.inf if first.spec.logits is not None else np.nan

    def reduced(p, arrays, **mask):
        return losses.mean(first.of(arrays)(p), **mask)

    arrays = first.cast()
    kept = first.kept(arrays)
    expected, g = jax.jit(jax.value_and_grad(reduced))(kept[first.first], kept)
    weights = KEEP.astype(np.float32)

    @jax.jit
    def masked(bad):
        step = jax.value_and_grad(reduced)
        finite = arrays[first.first]
        return step(bad, arrays, where=KEEP), step(finite, arrays, where=KEEP)[1], step(bad, arrays, weights=weights)

    (value, gradient), finite, (weighted, its_gradient) = masked(cast(bad))
    near(np.array([value, weighted]), np.array([expected, expected]), first.row.apart)
    for one in (gradient, finite, its_gradient):
        near(one[KEEP], g, first.row.apart)
    np.testing.assert_array_equal(finite[~KEEP], 0)


def test_extremes_are_finite(first):
    sizes = [s for s in (0.0, 1e-30, 1e-4, 88.0, 1e4, 1e18) if s < first.row.largest] + [first.row.largest]
    sizes = np.array([sign * size for size in sizes for sign in (1, -1)])
    values = first.spec.arrays[first.first]
    low, high = values.low + 0.5 * values.open, values.high
    if first.spec.logits is None:
        low, high = 0, 1
    p = np.sign(first.predictions - 0.1) * sizes.reshape((-1,) + (1,) * first.predictions.ndim)
    arrays = first.cast()
    values, gradients = jax.jit(jax.vmap(first.value_and_grad(arrays)))(cast(np.clip(p, low, high)))
    assert np.isfinite(values).all()
    assert first.row.signed or (values >= 0).all()
    assert np.isfinite(gradients).all()


def test_half_precision_is_computed_in_float32(first):
    arrays = first.cast()

    @jax.jit
    def both(half, arrays):
        step = first.value_and_grad(arrays)
        return first.of(arrays)(half), step(half)[1]

    for dtype in ("bfloat16", "float16"):
        half = cast(first.predictions, dtype)
        value, gradient = both(half, arrays)
        expected, exact = both(half.astype(jnp.float32), arrays)
        assert value.dtype == jnp.float32
        # two programs, so exp may round its last bit either way; half precision would be off by thousands of these
        np.testing.assert_array_max_ulp(np.asarray(value), np.asarray(expected), 2)
        assert gradient.dtype == dtype
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(gradient.astype(jnp.float32), exact, rtol=0.51 * eps, atol=1e-7)


def test_float64_stays(first, x64):
    dtypes = {dtype: jax.eval_shape(first.call, first.cast(dtype)).dtype for dtype in ("float64", "float32")}
    assert dtypes == {"float64": jnp.float64, "float32": jnp.float32}
    assert jax.eval_shape(first.call, first.cast("bfloat16")).dtype == jnp.float32


def test_integer_predictions_are_refused(first):
    for dtype in (np.int32, bool, complex):
        arrays = {**first.arrays, first.first: np.zeros(first.predictions.shape, dtype)}
        with pytest.raises(TypeError, match=rf"{first.name}: .* must be floating"):
            first.call(arrays)


def test_integer_and_bool_targets_are_converted(first):
    arrays = first.cast()
    second = list(arrays)[1]

    def of(targets):
        return first.call({**arrays, second: targets})

    if first.targets.dtype == np.int32 and first.spec.targets != "integer":
        for dtype in (np.int8, np.float32):
            np.testing.assert_array_equal(of(first.targets.astype(dtype)), first.call(arrays))
    elif first.spec.targets == "integer":
        for dtype in (bool, np.float32):
            with pytest.raises(TypeError, match="integer"):
                of(first.targets.astype(dtype))
        for dtype in (np.int8, np.int16) if (first.targets < 0).any() else (np.uint8, np.int8, np.uint32):
            np.testing.assert_array_equal(of(first.targets.astype(dtype)), first.call(arrays))
    else:
        for dtype in (bool, np.int32):
            t = (first.targets > 0.3).astype(dtype)
            np.testing.assert_array_equal(of(t), of(t.astype(np.float32)))


def test_lists_are_accepted(first):
    arrays = first.cast()
    lists = {k: v.tolist() for k, v in arrays.items()}
    np.testing.assert_array_equal(first.call(lists), first.call(arrays))


def test_shapes_of_results(first):
    arrays, rank = first.cast(), first.predictions.ndim - first.spec.event
    assert jax.eval_shape(first.call, arrays).shape == first.predictions.shape[:rank]
    empty = {k: v if first.batch_axes()[k] is None else v[:0] for k, v in arrays.items()}
    assert first.call(empty).shape == (0, *first.predictions.shape[1:rank])
    if "axis" in inspect.signature(first.loss).parameters:
        swapped = {k: jnp.moveaxis(v, -1, 0) if v.ndim > 1 else v for k, v in arrays.items()}
        got = first.loss(**swapped, **first.static, axis=0)
        near(got, first.call(arrays), first.row.apart)


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
LABEL_SHAPES = [((4, 3), s) for s in [(4, 1), (1,), (3,), (4, 3), (1, 4)]] + [((2, 4, 3), (1, 4))]


def test_mismatched_shapes_are_refused(first):
    second, integer = list(first.arrays)[1], first.spec.targets == "integer"
    for one, two in LABEL_SHAPES if integer and first.targets.ndim < first.predictions.ndim else SHAPES:
        one, two = ((2,) * (first.spec.event - 1) + shape for shape in (one, two))
        arrays = {k: jnp.zeros(one) for k in first.arrays if first.batch_axes()[k] == 0}
        with pytest.raises(ValueError, match=first.name) as caught:
            jax.eval_shape(first.call, {**arrays, second: jnp.zeros(two, jnp.int32 if integer else jnp.float32)})
        assert str(one) in str(caught.value)
        assert str(two) in str(caught.value)


WRONG = {
    "axis": [(99, ValueError), (-99, ValueError), (1.0, TypeError), (True, TypeError)],
    "ignore_index": [(1.0, TypeError), (True, TypeError)],
    "where": [(np.ones((4, 3)), TypeError), (np.ones(3, bool), ValueError), (np.ones(4, bool), ValueError)],
}


def test_options_are_checked(first):
    for option, parameter in inspect.signature(first.loss).parameters.items():
        wrong = WRONG.get(option, [])
        if parameter.annotation is bool:
            wrong = [(1, TypeError), (None, TypeError)]
        elif parameter.annotation == Scalar:
            wrong = [(np.nan, ValueError), (np.ones(2), ValueError), ("0", TypeError), (True, TypeError)]
        for value, error in wrong:
            with pytest.raises(error, match=f"{first.name}: {option} must"):
                first.call({**first.cast(), option: value})


def test_ranges_are_checked(first):
    """A concrete number out of range raises, a traced one makes its example NaN, in value and in gradient."""
    arrays = first.cast()
    for argument, values in first.spec.arrays.items():
        if argument not in arrays or values.kind != "float":
            continue
        for bad in (values.low - 1, values.high + 1, *([values.low] if values.open else [])):
            if not np.isfinite(bad):
                continue
            wrong = np.asarray(arrays[argument]).copy()
            wrong[(1,) * wrong.ndim] = bad
            with pytest.raises(ValueError, match=f"{first.name}: {argument} must be"):
                first.call({**arrays, argument: wrong})
            traced = {**arrays, argument: jnp.asarray(wrong)}
            value = jax.jit(first.call)(traced)
            gradient = jax.jit(lambda a: first.value_and_grad(a)(a[first.first])[1])(traced)
            expected = np.zeros(first.predictions.shape, bool)
            if values.shape == "class":
                expected[:] = True
            elif first.spec.event:
                expected[(1,) * (expected.ndim - first.spec.event)] = True
            else:
                expected[(1,) * expected.ndim] = True
            np.testing.assert_array_equal(np.isnan(gradient), expected)
            assert np.isnan(value).sum() == expected.any(tuple(range(value.ndim, expected.ndim))).sum()


def test_a_missing_event_axis_is_refused(first):
    entry = first.spec
    dtype = jnp.int32 if entry.targets == "integer" else jnp.float32
    scalars = {k: jnp.zeros(()) for k in first.arrays if first.batch_axes()[k] == 0}
    scalars[list(first.arrays)[1]] = jnp.zeros((), dtype)
    if entry.event:
        with pytest.raises(ValueError, match="event ax"):
            first.call(scalars)
    else:
        assert first.call({k: v[(0,) * v.ndim] for k, v in first.cast().items()}).shape == ()


def test_regression_is_zero_at_the_optimum():
    for name in ("squared_error", "l2_loss", "absolute_error", "mean_squared_error", "mean_absolute_error"):
        entry = losses.registry[name]
        value, gradient = jax.value_and_grad(lambda p, f=entry: f(p, cast(Y)).sum())(cast(Y))
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
