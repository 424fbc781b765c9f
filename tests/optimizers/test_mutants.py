"""Every number in every rule matters: wrong by 0.1 %, it turns a case of the tables red.

One mutant per hyperparameter, per slot as it comes in (its decay), and one for the output of each rule.
"""

import sys
from functools import cache, wraps
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from paths import agree, rules_of, tables

from lossopt_jax.transforms._rule import Rule, program

# What may be off by 0.1 % without any effect that a test could see, and why.
EQUIVALENT = {
    "scale_by_backtracking_linesearch": dict.fromkeys(
        ("slot learning_rate", "slot value", "slot grad"), "only read out"
    ),
    "scale_by_rprop": {"slot before": "only its sign is read"},
    "monitor": {"slot measurements": "only read out"},
    "set_to_zero": {"output": "zeros grow into zeros"},
    "scale_by_zoom_linesearch": dict.fromkeys(("slot learning_rate", "slot value", "slot grad"), "only read out"),
}

RULES = {
    made.rule.name: made.rule
    for name, module in list(sys.modules.items())
    if name.startswith("lossopt_jax.transforms._")
    for made in vars(module).values()
    if isinstance(getattr(made, "rule", None), Rule)
    and "outermost" not in made.rule.flags  # those only round, and nothing is rounded in float64
}
_expected = {}


@cache
def cases_of_rules():
    """The cases in which each rule runs."""
    found = {}
    for table in tables().values():
        for case in table:
            for name in {member.rule.name for member in rules_of(case.ours())}:
                found.setdefault(name, []).append(case)
    return found


def grown(tree):
    def grow(leaf):
        return leaf * jnp.asarray(1.001, leaf.dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else leaf

    return jax.tree.map(grow, tree)


def mutants(rule):
    yield from (("argument", name) for name in rule.scalars)
    yield from (("slot", name) for name, slot in rule.slots.items() if slot.dtype is None)
    yield ("output", "")


def mutate(function, place, kind, name):
    """The function with one number changed; `place` is where the slots stand among its arguments."""

    @wraps(function)
    def mutated(*args, **kwargs):
        args = list(args)
        if kind == "argument":
            kwargs[name] = grown(kwargs[name])
        if kind == "slot" and hasattr(args[place], name):
            args[place] = SimpleNamespace(**{**vars(args[place]), name: grown(getattr(args[place], name))})
        result = function(*args, **kwargs)
        return (grown(result[0]), *result[1:]) if kind == "output" else result

    return mutated


def survives(rule, kind, name):
    """Whether every case that runs the rule is still green."""
    function, once, measure = rule.function, rule.once, rule.measure
    try:
        object.__setattr__(rule, "function", mutate(function, 2 if rule.lift == "wrapper" else 1, kind, name))
        if once is not None and kind != "output":
            object.__setattr__(rule, "once", mutate(once, 0, kind, name))
        if measure is not None and (kind == "argument" or (kind == "slot" and rule.measures_leaves)):
            object.__setattr__(rule, "measure", mutate(measure, 2, kind, name))
        program.cache_clear()
        for case in cases_of_rules()[rule.name]:
            if id(case) not in _expected:
                _expected[id(case)] = case.theirs()
            try:
                agree(case.run(case.ours()), _expected[id(case)], case.atol)
            except AssertionError:
                return False
        return True
    finally:
        object.__setattr__(rule, "function", function)
        object.__setattr__(rule, "once", once)
        object.__setattr__(rule, "measure", measure)
        program.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RULES))
def test_every_mutant_dies(x64, name):
    pytest.importorskip("torch", reason="torch is the extra 'oracles'")
    rule = RULES[name]
    alive = {f"{kind} {own}".strip() for kind, own in mutants(rule) if survives(rule, kind, own)}
    assert alive == set(EQUIVALENT.get(name, {}))
