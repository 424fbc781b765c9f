"""Every metric: merging is seeing, masks are absences, weights are repetitions, and states are stable pytrees."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import metrics

N = 24
RNG = np.random.default_rng(0)
P = RNG.uniform(size=N).astype(np.float32)
ROWS = RNG.uniform(size=(N, 3)).astype(np.float32)
LABELS = RNG.integers(0, 3, N).astype(np.int32)

# name: (metric, prediction, target)
TABLE = {
    "mean": (metrics.mean(), P, None),
    "accuracy": (metrics.accuracy(), ROWS, LABELS),
    "binary_accuracy": (metrics.binary_accuracy(), P, (LABELS > 0).astype(np.int32)),
    "categorical_accuracy": (metrics.categorical_accuracy(), ROWS, np.eye(3, dtype=np.float32)[LABELS]),
    "sparse_categorical_accuracy": (metrics.sparse_categorical_accuracy(), ROWS, LABELS),
    "mean_squared_error": (metrics.mean_squared_error(), ROWS, ROWS[::-1].copy()),
    "mean_absolute_error": (metrics.mean_absolute_error(), P, P[::-1].copy()),
    "r2_score": (metrics.r2_score(), P, 0.8 * P + 0.3 * RNG.normal(size=N).astype(np.float32)),
}
every = pytest.mark.parametrize("name", list(TABLE))


def rows(data, chosen):
    return tuple(None if part is None else jnp.asarray(part[chosen]) for part in data)


def close(a, b, rtol=2e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6)


def test_registry_is_exports_is_table():
    exported = {name for name, value in vars(metrics).items() if inspect.isfunction(value)}
    assert set(metrics.registry) == exported == set(TABLE)


@every
def test_streaming_is_all_at_once(name):
    metric, *data = TABLE[name]
    state = metric.init()
    for start in range(0, N, 5):
        state = metric.update(state, *rows(data, slice(start, start + 5)))
    close(metric.compute(state), metric(*rows(data, slice(None))))


@every
def test_merge_is_associative_and_commutative(name):
    metric, *data = TABLE[name]
    a, b, c = (metric.update(metric.init(), *rows(data, s)) for s in (slice(0, 3), slice(3, 10), slice(10, N)))
    whole = metric(*rows(data, slice(None)))
    for state in (
        metric.merge(metric.merge(a, b), c),
        metric.merge(a, metric.merge(b, c)),
        metric.merge(c, metric.merge(b, a)),
        metric.merge(metric.init(), metric.merge(metric.merge(a, b), metric.merge(c, metric.init()))),
    ):
        close(metric.compute(state), whole)


@every
def test_masked_is_dropped_even_if_nan(name):
    metric, *data = TABLE[name]
    keep = np.arange(N) % 3 != 1
    spoiled = np.where(keep.reshape(-1, *[1] * (data[0].ndim - 1)), data[0], np.nan).astype(np.float32)
    dropped = metric(*rows(data, keep))
    close(metric(jnp.asarray(spoiled), *rows(data[1:], slice(None)), where=jnp.asarray(keep)), dropped)
    weights = jnp.asarray(keep.astype(np.float32))
    close(metric(jnp.asarray(spoiled), *rows(data[1:], slice(None)), weights=weights), dropped)


@every
def test_weights_are_repetitions(name):
    metric, *data = TABLE[name]
    counts = np.arange(N) % 4
    repeated = np.repeat(np.arange(N), counts)
    close(metric(*rows(data, slice(None)), weights=jnp.asarray(counts, jnp.float32)), metric(*rows(data, repeated)))


@every
def test_nothing_seen_is_nan(name):
    metric, *data = TABLE[name]
    assert np.isnan(metric.compute(metric.init()))
    assert np.isnan(metric(*rows(data, slice(None)), where=jnp.zeros(N, bool)))
    assert np.isnan(metric(*rows(data, slice(0, 0))))


@every
def test_states_are_stable(name):
    metric, *data = TABLE[name]
    first = metric.init()
    then = metric.update(first, *rows(data, slice(None)))

    def kinds(state):
        return [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(state)]

    assert jax.tree.structure(first) == jax.tree.structure(then) == jax.tree.structure(metric.merge(first, then))
    assert kinds(first) == kinds(then) == kinds(metric.merge(first, then))
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(first)]
    assert len(set(pointers)) == len(pointers)


@every
def test_jit_scan_and_vmap(name):
    metric, *data = TABLE[name]
    prediction, target = rows(data, slice(None))
    expected = metric(prediction, target)
    close(jax.jit(metric.__call__)(prediction, target), expected)
    batches = jax.tree.map(lambda x: x.reshape(6, 4, *x.shape[1:]), (prediction, target))
    scanned, _ = jax.lax.scan(lambda state, batch: (metric.update(state, *batch), None), metric.init(), batches)
    close(metric.compute(scanned), expected)
    apart = jax.vmap(metric.__call__)(*batches) if target is not None else jax.vmap(metric.__call__)(batches[0])
    one = metric(prediction[:4], None if target is None else target[:4])
    close(apart[0], one)


@every
def test_eight_devices(name):
    """psum of the states is their merge, for the metrics that are sums; the others merge after an all_gather."""
    metric, *data = TABLE[name]
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    prediction, target = rows(data, slice(None))

    def part(prediction, target):
        state = metric.update(metric.init(), prediction, target)
        if name != "r2_score":
            return metric.compute(jax.lax.psum(state, "d"))
        every_state = jax.lax.all_gather(state, "d")
        merged = metric.init()
        for i in range(8):
            merged = metric.merge(merged, jax.tree.map(lambda x, i=i: x[i], every_state))
        return metric.compute(merged)

    spec = jax.sharding.PartitionSpec("d")
    none = jax.sharding.PartitionSpec()
    sharded = jax.shard_map(part, mesh=mesh, in_specs=(spec, spec), out_specs=none, check_vma=False)
    close(sharded(prediction, target), metric(prediction, target))


@every
def test_objects(name):
    metric, *_ = TABLE[name]
    assert metric == metrics.registry[name]()
    assert hash(metric) == hash(metrics.registry[name]())
    assert pickle.loads(pickle.dumps(metric)) == metric
    assert metric.name == name
    assert repr(metric).startswith(name)


def test_sums_do_not_stall():
    """2²⁴ + 1 examples: a float32 count alone would stop."""
    metric, ones = metrics.mean(), jnp.ones(1)

    def step(state, _):
        return metric.update(state, ones), None

    high = metric.update(metric.init(), jnp.zeros(1), weights=jnp.full(1, 2.0**24))
    state, _ = jax.lax.scan(step, high, None, length=1000)
    np.testing.assert_allclose(metric.compute(state), 1000 / (2**24 + 1000), rtol=1e-6)


def test_an_infinite_value_is_an_infinite_mean():
    assert metrics.mean()(jnp.array([1.0, jnp.inf])) == jnp.inf


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.mean()(jnp.ones(3), where=jnp.ones(3)), TypeError, "where must be boolean"),
        (lambda: metrics.mean()(jnp.ones(3), where=jnp.ones(2, bool)), ValueError, "leading axes"),
        (lambda: metrics.mean()(jnp.ones((3, 2)), weights=jnp.ones(2)), ValueError, "leading axes"),
        (lambda: metrics.mean_squared_error()(jnp.ones((3, 1)), jnp.ones(3)), ValueError, r"\(3, 1\)"),
        (lambda: metrics.mean_absolute_error()(jnp.ones((3, 2)), jnp.ones((1, 2))), ValueError, r"\(1, 2\)"),
        (lambda: metrics.binary_accuracy()(jnp.ones(3, int), jnp.ones(3)), TypeError, "floating"),
        (lambda: metrics.sparse_categorical_accuracy()(jnp.ones((3, 2)), jnp.ones(3)), TypeError, "integer"),
        (lambda: metrics.sparse_categorical_accuracy()(jnp.ones((3, 2)), jnp.ones(4, int)), ValueError, r"\(4,\)"),
        (lambda: metrics.categorical_accuracy()(jnp.ones(3), jnp.ones(3)), ValueError, "class axis"),
        (lambda: metrics.r2_score()(jnp.ones((3, 2)), jnp.ones((3, 2))), ValueError, r"r2_score\(outputs=2\)"),
        (lambda: metrics.r2_score(0), ValueError, "outputs"),
        (lambda: metrics.binary_accuracy("half"), TypeError, "threshold"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
