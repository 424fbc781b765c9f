"""Every test runs strict: dtype promotion, rank promotion, eight CPU devices, warnings as errors (pyproject)."""

import collections
import gc
import itertools
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

gc.set_threshold(100_000, 50, 100)  # a suite's programs are millions of objects that stay

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test's cases, the rounds on other JAX versions run the first two and every tenth; the rest is marked `once`.

    The laws of one row run one after the other, so that each finds the programs that the ones before it compiled.
    """
    cases = collections.Counter()
    for item in items:
        test = item.path, getattr(item, "originalname", item.name)
        cases[test] += 1
        if cases[test] > 2 and cases[test] % 10:
            item.add_marker(pytest.mark.once)
    first = {}
    place = {}
    for number, item in enumerate(items):
        params = item.callspec.params if hasattr(item, "callspec") else {}
        row = params.get("row", params.get("tx", item))
        place[item] = first.setdefault((item.path, id(row)), number)
    items.sort(key=place.__getitem__)


MAPPINGS = Path("/proc/self/maps")
_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def few_programs():
    """Forget compiled programs when they are many: each is some memory mappings, of which Linux allows 65,530."""
    yield
    if next(_tests) % 50 == 0 and (not MAPPINGS.exists() or MAPPINGS.read_bytes().count(b"\n") > 12_000):
        jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Run a test in float64, as the differential tests against peers do."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def one_device(monkeypatch):
    """What is traced on a machine with one device only."""
    jax.clear_caches()
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    yield
    jax.clear_caches()
