"""Fifteen float64 steps on a random tree: our path, a live peer's, and a NumPy transcription's, to be compared."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt_jax as lo

STEPS, RATE = 15, 0.07


def tree(seed):
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(4, 3)), "deep": {"b": rng.normal(size=5), "s": rng.normal(size=())}}


def ranks(seed):
    """No scalar, but a matrix that is wide, one that is tall, and arrays of rank 3 and 4."""
    rng = np.random.default_rng(seed)
    shapes = {"wide": (3, 5), "tall": (4, 2), "three": (2, 4, 3), "four": (3, 2, 2, 3), "vector": (4,)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def gradients(of=tree):
    """Gradients of very different sizes, some of them zero."""
    rng = np.random.default_rng(1)
    for step in range(STEPS):
        scale = jax.tree.map(lambda p: 10.0 ** rng.integers(-3, 2, size=p.shape), of(0))
        yield jax.tree.map(lambda p, s: s * p * (rng.random() > 0.1), of(100 + step), scale)


def values():
    """A loss for each step, for the rules that look at it."""
    return np.random.default_rng(2).uniform(0.1, 3.0, size=STEPS)


def flat(params):
    return np.concatenate([np.ravel(p) for p in jax.tree.leaves(params)])


def path_of(tx, apply=lo.apply_updates, extra=None, read=lambda params, state: params, of=tree):
    """Where the parameters are after every step.

    extra: (step, params, grads) → further keywords of `update`.
    read: (params, state) → what to look at instead of the parameters.
    of: seed → tree.
    """
    params = jax.tree.map(jnp.asarray, of(0))
    state, points = tx.init(params), []
    for step, grads in enumerate(gradients(of)):
        grads = jax.tree.map(jnp.asarray, grads)
        updates, state = tx.update(grads, state, params, **({} if extra is None else extra(step, params, grads)))
        params = apply(params, updates)
        points.append(flat(read(params, state)))
    return np.stack(points)


def with_value(step, params, grads):
    """The loss as `value=`: an `extra` for `path_of`."""
    return {"value": jnp.asarray(values()[step])}


def optax_path(make, extra=None, read=lambda params, state: params, of=tree):
    import optax

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return path_of(make(), optax.apply_updates, extra, read, of)


def torch_path(make, of=tree, sparse=False, rate=None, read=None):
    """`make(torch.optim, params)` gives the optimizer.

    rate: step → what is set before every step.
    read: the name of a piece of state to look at instead of the parameters.
    """
    torch = pytest.importorskip("torch", reason="torch is the extra 'oracles'")
    params = [torch.tensor(p, requires_grad=True) for p in jax.tree.leaves(of(0))]
    before, points = torch.get_default_dtype(), []
    torch.set_default_dtype(torch.float64)  # in which torch keeps its own scalars
    try:
        optimizer = make(torch.optim, params)
        for step, grads in enumerate(gradients(of)):
            for p, g in zip(params, jax.tree.leaves(grads), strict=True):
                p.grad = torch.tensor(g).to_sparse(1) if sparse else torch.tensor(g)
            if rate is not None:
                optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.step()
            seen = params if read is None else [optimizer.state[p][read] for p in params]
            points.append(np.concatenate([p.detach().numpy().ravel() for p in seen]))
    finally:
        torch.set_default_dtype(before)
    return np.stack(points)


def keras_path(make, of=tree):
    """`make(keras.optimizers)` gives the optimizer."""
    keras = pytest.importorskip("keras", reason="keras is in the extra 'test'")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            variables = [keras.Variable(p, dtype="float64") for p in jax.tree.leaves(of(0))]
            optimizer, points = make(keras.optimizers), []
            for grads in gradients(of):
                optimizer.apply([jnp.asarray(g) for g in jax.tree.leaves(grads)], variables)
                points.append(np.concatenate([np.ravel(v.value) for v in variables]))
    finally:
        keras.config.set_floatx(before)
    return np.stack(points)


def numpy_path(start, per_leaf=False, of=tree):
    """`start(w)` gives a function `move(g, t) → w`, of all elements as one vector, or of each leaf apart."""
    leaves = [np.array(p) for p in jax.tree.leaves(of(0))] if per_leaf else [flat(of(0))]
    moves, points = [start(leaf) for leaf in leaves], []
    for t, grads in enumerate(gradients(of), start=1):
        parts = jax.tree.leaves(grads) if per_leaf else [flat(grads)]
        points.append(np.concatenate([np.ravel(move(g, t)) for move, g in zip(moves, parts, strict=True)]))
    return np.stack(points)


class Case(NamedTuple):
    """One of our transforms, and the path that it must take.

    peer: who says so: "optax", "torch", "keras", the name of another package, or "NumPy" for a transcription.
    ours: makes the transform.
    theirs: the path that it must take.
    run: our path, where plain `path_of` will not do.
    atol: relative to the largest element.
    """

    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], np.ndarray]
    run: Callable[[Any], np.ndarray] = path_of
    atol: float = 1e-12


def agree(mine, theirs, atol=1e-12):
    assert np.isfinite(theirs).all()
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol * max(1, np.abs(theirs).max()))


def check(case):
    agree(case.run(case.ours()), case.theirs(), case.atol)


def parametrize(cases):
    """One test per case of a table `{optimizer: [case, …]}`."""
    flat_cases = [(f"{name}-{case.peer}-{i}", case) for name, row in cases.items() for i, case in enumerate(row)]
    return pytest.mark.parametrize("case", [case for _, case in flat_cases], ids=[name for name, _ in flat_cases])


def tables():
    """The tables `CASES` of every test module of optimizers, by optimizer or transform."""
    cases = {}
    for path in sorted((Path(__file__).parent / "optimizers").glob("test_*.py")):
        if re.search(r"^CASES\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            spec = importlib.util.spec_from_file_location(f"cases_of_{path.stem}", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            for name, row in module.CASES.items():
                cases.setdefault(name, []).extend(row)
    return cases


def rules_of(tx):
    """Every transform in a composition that is a rule or a wrapper."""
    own = [tx] if hasattr(tx, "rule") else []
    return own + [rule for member in tx._members() for rule in rules_of(member)]


def falling(step):
    """A rate that depends on the step."""
    return 0.1 / (1.0 + step)


MATRICES = {"w": True, "deep": {"b": False, "s": False}}
