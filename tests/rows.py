"""One row per registered transform and optimizer: how the laws build it."""

import dataclasses
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lossopt_jax as lo
from lossopt_jax.transforms._views import SplitRealAndImaginary

T, O = lo.transforms, lo.optimizers


class Row(NamedTuple):
    """How to build a transform from one of its hyperparameters, that one's name, and two values of it.

    Of a transform without hyperparameters: how to build it from nothing, None.

    restless: it may move although gradients and parameters are zero.
    unbounded: its updates grow with the gradients, so that a few of the largest ones leave float16.
    magnifies: how many times a rounding of its input may show in its result.
    """

    build: Any
    knob: str | None = None
    value: float | None = None
    other: float | None = None
    restless: bool = False
    unbounded: bool = False
    magnifies: int = 1


def halved(updates, params):
    """A function of whole trees, for `stateless`."""
    return jax.tree.map(lambda u: u / 2, updates)


def less_than_half(update, param):
    """A function of one array, for `stateless_with_tree_map`."""
    return 0.4 * update


def in_even_steps(step):
    """A condition: the first update and every second after it."""
    return step % 2 == 0


MEASURES = {"norm": T.global_norm, "mean": T.measure_with_ema(T.global_norm, 0.9)}


def matrices(params):
    return jax.tree.map(lambda p: np.ndim(p) > 1, params)


def within_hundred(params):
    """A projection of complex parameters too."""
    return jax.tree.map(lambda p: p if jnp.iscomplexobj(p) else jnp.clip(p, -100, 100), params)


def vectors(params):
    return jax.tree.map(lambda p: np.ndim(p) < 2, params)


def by_rank(params):
    return jax.tree.map(lambda p: "matrix" if np.ndim(p) > 1 else "rest", params)


def half_square(params):
    """½ Σ |w|² over whatever is trained: a loss for the rules that ask for one."""
    sizes = [jnp.abs(p) for p in jax.tree.leaves(params) if jnp.issubdtype(jnp.result_type(p), jnp.inexact)]
    wide = [size if size.dtype == jnp.float64 else size.astype(jnp.float32) for size in sizes]
    return sum((jnp.sum(size * size).astype(jnp.result_type(float)) for size in wide), start=0.0) / 2


def weights(params):
    """Whatever is trained as one real vector: residuals for the rules that ask for them."""
    leaves = [p for p in jax.tree.leaves(params) if jnp.issubdtype(jnp.result_type(p), jnp.inexact)]
    parts = [part for p in leaves for part in (p.real, p.imag)[: 1 + jnp.iscomplexobj(p)]]
    flat = [jnp.ravel(part).astype(jnp.result_type(float)) for part in parts]
    return jnp.concatenate([*flat, jnp.zeros(0)])


def extras(params, grads):
    """What a generic trainer hands to every optimizer."""
    return {"value": half_square(params), "grad": grads, "value_fn": half_square, "key": None, "loss": 1.0}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class OfOneExample(lo.GradientTransformation):
    """A transform of gradients per example, given the gradient of one."""

    inner: Any

    def _members(self):
        return (self.inner,)

    def _init(self, params):
        return self.inner._init(params)

    def _run(self, updates, state, params, extra):
        return self.inner._run(jax.tree.map(lambda g: g[None], updates), state, params, extra)


def by_name(name):
    """The optimizer of this name by itself, with residuals for the one that asks for them."""
    return O.levenberg_marquardt(weights) if name == "levenberg_marquardt" else O.registry.build(name)


def whole(tx):
    """A transform of whole gradients: with a batch of one for whoever wants a gradient per example."""
    return OfOneExample(tx) if "per_example" in tx._flags else tx


@lru_cache(maxsize=128)
def _compiled(tx):
    return jax.jit(lambda grads, state, params: tx.update(grads, state, params, **extras(params, grads)))


def _branches(tx):
    """Whether it holds a `cond` or a loop that JAX would compile anew in every eager call."""
    rules = [tx.rule] if hasattr(tx, "rule") else []
    own = any(rule.lift == "wrapper" or "value_fn" in rule.needs for rule in rules)
    return own or any(map(_branches, tx._members()))


def advance(tx, grads, state, params):
    """`tx.update` as a generic trainer calls it; compiled where that saves a test's time."""
    tx = whole(tx)
    leaves = jax.tree.leaves((grads, params))
    if _branches(tx) and all(isinstance(leaf, jax.Array) and leaf.dtype != jax.dtypes.float0 for leaf in leaves):
        return _compiled(tx)(grads, state, params)
    return tx.update(grads, state, params, **extras(params, grads))


def lifts(tx):
    """The lifts of all rules in a composition."""
    own = {tx.rule.lift} if hasattr(tx, "rule") else set()
    return own.union(*map(lifts, tx._members()))


def refuses_complex(tx):
    """Whether a rule in it sees where a leaf ends, of which there is no complex form."""
    if isinstance(tx, SplitRealAndImaginary):
        return False
    rule = getattr(tx, "rule", None)
    own = rule is not None and (rule.lift == "leafwise" or "by_shape" in rule.flags or rule.seen is not None)
    return own or any(map(refuses_complex, tx._members()))


TRANSFORMS = {
    "adaptive_grad_clip": Row(T.adaptive_grad_clip, "clipping", 0.1, 0.01),
    "add_decayed_weights": Row(T.add_decayed_weights, "weight_decay", 0.1, 0.01, unbounded=True),
    "add_noise": Row(lambda x: T.add_noise(x, 0.5), "eta", 0.1, 0.01, restless=True, unbounded=True),
    "cautious": Row(lambda x: T.cautious(T.scale_by_adam(), x), "min_fraction", 0.9, 0.5),
    "apply_if_finite": Row(lambda x: T.apply_if_finite(O.adam(x)), "learning_rate", 0.1, 0.01),
    "centralize": Row(lambda x: lo.chain(T.centralize(), O.sgd(x)), "learning_rate", 0.1, 0.01, unbounded=True),
    "chain": Row(lambda x: lo.chain(T.clip_by_global_norm(1.0), O.adamw(x)), "learning_rate", 0.1, 0.01),
    "clip": Row(T.clip, "max_delta", 0.1, 0.5),
    "clip_by_block_rms": Row(T.clip_by_block_rms, "threshold", 0.5, 0.1),
    "clip_by_global_norm": Row(T.clip_by_global_norm, "max_norm", 0.5, 0.1),
    "add_decay_to_initial": Row(T.add_decay_to_initial, "weight_decay", 0.1, 0.01, unbounded=True),
    "add_independent_weight_decay": Row(
        lambda x: lo.chain(O.sgd(0.1), T.add_independent_weight_decay(x)), "weight_decay", 0.1, 0.01, unbounded=True
    ),
    "clip_by_norm": Row(T.clip_by_norm, "max_norm", 0.5, 0.1),
    "clip_by_norm_quantile": Row(lambda x: T.clip_by_norm_quantile(x, 4), "quantile", 0.5, 0.1, unbounded=True),
    "compress_state": Row(lambda x: lo.compress_state(O.adamw(x), "int8"), "learning_rate", 0.1, 0.01),
    "correct_by_previous_gradient": Row(T.correct_by_previous_gradient, "b1", 0.9, 0.5),
    "dynamic_loss_scale": Row(lambda x: T.dynamic_loss_scale(O.adam(x), 4.0), "learning_rate", 0.1, 0.01),
    "ema": Row(T.ema, "decay", 0.9, 0.5, unbounded=True),
    "ema_params": Row(lambda x: T.ema_params(O.adam(0.1), x), "decay", 0.9, 0.5),
    "kahan": Row(lambda x: T.kahan(O.adam(x)), "learning_rate", 0.1, 0.01),
    "keep_params_nonnegative": Row(
        lambda x: lo.chain(O.sgd(x), T.keep_params_nonnegative()), "learning_rate", 0.1, 0.01, True, True
    ),
    "freeze": Row(lambda x: lo.chain(T.freeze(vectors), O.sgd(x)), "learning_rate", 0.1, 0.01, unbounded=True),
    "masked": Row(lambda x: lo.masked(T.trace(x), matrices), "decay", 0.9, 0.5, unbounded=True),
    "master_weights": Row(lambda x: lo.master_weights(O.adam(x)), "learning_rate", 0.1, 0.01),
    "multi_steps": Row(lambda x: T.multi_steps(O.adam(x), 2), "learning_rate", 0.1, 0.01),
    "named_chain": Row(lambda x: lo.named_chain(("a", T.trace(0.9)), ("b", O.sgd(x))), "learning_rate", 0.1, 0.01),
    "normalize_by_update_norm": Row(T.normalize_by_update_norm, "scale_factor", 2.0, 0.5),
    "offload_state": Row(lambda x: lo.offload_state(O.adamw(x), 4), "learning_rate", 0.1, 0.01),
    "pack_small": Row(lambda x: lo.pack_small(O.adamw(x), 12), "learning_rate", 0.1, 0.01),
    "partition": Row(
        lambda x: lo.partition({"matrix": T.scale_by_rms(x), "rest": O.sgd(1.0)}, by_rank), "decay", 0.9, 0.5
    ),
    "project_params": Row(
        lambda x: lo.chain(O.sgd(x), T.project_params(within_hundred)), "learning_rate", 0.1, 0.01, unbounded=True
    ),
    "scale": Row(T.scale, "step_size", -2.0, 0.5, unbounded=True),
    "scale_by_acprop": Row(lambda x: T.scale_by_acprop(b2=x), "b2", 0.9, 0.5, unbounded=True),
    "scale_by_adadelta": Row(T.scale_by_adadelta, "rho", 0.9, 0.5),
    "scale_by_adam": Row(lambda x: T.scale_by_adam(x, nesterov=True), "b1", 0.9, 0.5),
    "scale_by_adam_mini": Row(T.scale_by_adam_mini, "b1", 0.9, 0.5),
    "scale_by_adamax": Row(T.scale_by_adamax, "b1", 0.9, 0.5),
    "scale_by_adan": Row(T.scale_by_adan, "b1", 0.9, 0.5),
    "scale_by_ademamix": Row(T.scale_by_ademamix, "b1", 0.9, 0.5),
    "scale_by_adopt": Row(T.scale_by_adopt, "b1", 0.9, 0.5),
    "scale_by_amsgrad": Row(T.scale_by_amsgrad, "b1", 0.9, 0.5),
    "scale_by_asgd": Row(T.scale_by_asgd, "learning_rate", 0.1, 0.01),
    "scale_by_belief": Row(T.scale_by_belief, "b1", 0.9, 0.5),
    "scale_by_came": Row(T.scale_by_came, "b1", 0.9, 0.5),
    "scale_by_factored_rms": Row(
        lambda x: T.scale_by_factored_rms(decay_rate=x, min_dim_size_to_factor=2), "decay_rate", 0.8, 0.5
    ),
    "scale_by_fromage": Row(T.scale_by_fromage, "learning_rate", 0.1, 0.01),
    "scale_by_ftrl": Row(T.scale_by_ftrl, "learning_rate", 0.1, 0.01, unbounded=True),
    "scale_by_lazy_adam": Row(T.scale_by_lazy_adam, "b1", 0.9, 0.5),
    "scale_by_learning_rate": Row(T.scale_by_learning_rate, "learning_rate", 0.1, 0.01),
    "scale_by_lion": Row(T.scale_by_lion, "b1", 0.9, 0.5),
    "scale_by_madgrad": Row(T.scale_by_madgrad, "learning_rate", 0.1, 0.01),
    "scale_by_nadam": Row(T.scale_by_nadam, "b1", 0.9, 0.5),
    "scale_by_novograd": Row(T.scale_by_novograd, "b1", 0.9, 0.5),
    "scale_by_optimistic_gradient": Row(T.scale_by_optimistic_gradient, "alpha", 0.9, 0.5, unbounded=True),
    "scale_by_param_block_norm": Row(
        lambda x: lo.chain(T.scale_by_param_block_norm(x), O.sgd(0.01)), "min_scale", 30.0, 20.0, unbounded=True
    ),
    "scale_by_param_block_rms": Row(
        lambda x: lo.chain(T.scale_by_param_block_rms(x), O.sgd(0.01)), "min_scale", 30.0, 20.0, unbounded=True
    ),
    "scale_by_radam": Row(T.scale_by_radam, "b1", 0.9, 0.5, unbounded=True),
    "scale_by_rms": Row(partial(T.scale_by_rms, bias_correction=True), "decay", 0.9, 0.5),
    "scale_by_rprop": Row(T.scale_by_rprop, "learning_rate", 0.1, 0.01),
    "scale_by_rss": Row(lambda x: T.scale_by_rss(eps=x), "eps", 0.1, 0.01),
    "scale_by_schedule": Row(lambda x: T.scale_by_schedule(lambda step: x), "step_size", 0.1, 0.01),
    "scale_by_sign": Row(lambda x: lo.chain(T.scale_by_sign(), O.sgd(x)), "learning_rate", 0.1, 0.01),
    "scale_by_simplified_ademamix": Row(T.scale_by_simplified_ademamix, "b1", 0.9, 0.5),
    "scale_by_sm3": Row(T.scale_by_sm3, "b1", 0.9, 0.5),
    "scale_by_stddev": Row(T.scale_by_stddev, "decay", 0.9, 0.5),
    "scale_by_trust_ratio": Row(lambda x: T.scale_by_trust_ratio(x), "min_norm", 30.0, 20.0),
    "scale_by_yogi": Row(T.scale_by_yogi, "b1", 0.9, 0.5, restless=True),
    "selective_transform": Row(
        lambda x: T.selective_transform(O.adamw(x), freeze_mask=vectors), "learning_rate", 0.1, 0.01
    ),
    "skip_large_updates": Row(lambda x: T.skip_large_updates(O.adam(x), 1e30), "learning_rate", 0.1, 0.01),
    "skip_spikes": Row(lambda x: T.skip_spikes(O.adam(x), 1e3, 0.5, 4), "learning_rate", 0.1, 0.01),
    "stochastic_rounding": Row(lambda x: lo.stochastic_rounding(O.adam(x)), "learning_rate", 0.1, 0.01),
    "swa": Row(lambda x: T.swa(O.adam(x), 1), "learning_rate", 0.1, 0.01),
    "trace": Row(lambda x: T.trace(x, nesterov=True), "decay", 0.9, 0.5, unbounded=True),
    "zero_nans": Row(lambda x: lo.chain(T.zero_nans(), O.sgd(x)), "learning_rate", 0.1, 0.01, unbounded=True),
    # compositions, conditions and measurements
    "apply_every": Row(T.apply_every, "k", 2.0, 3.0, unbounded=True),
    "conditionally_mask": Row(lambda x: T.conditionally_mask(O.adam(x), in_even_steps), "learning_rate", 0.1, 0.01),
    "conditionally_transform": Row(
        lambda x: T.conditionally_transform(O.adam(x), in_even_steps), "learning_rate", 0.1, 0.01, unbounded=True
    ),
    "identity": Row(lambda _: T.identity(), unbounded=True),
    "measure_update": Row(lambda x: T.measure_update(O.adam(x)), "learning_rate", 0.1, 0.01),
    "monitor": Row(lambda _: T.monitor(MEASURES), unbounded=True),
    "set_to_zero": Row(lambda _: T.set_to_zero()),
    "snapshot": Row(lambda _: T.snapshot("norm", T.global_norm), unbounded=True),
    "stateless": Row(lambda _: T.stateless(halved), unbounded=True),
    "stateless_with_tree_map": Row(lambda _: T.stateless_with_tree_map(less_than_half), unbounded=True),
    # quasi-Newton
    "scale_by_backtracking_linesearch": Row(
        lambda x: lo.chain(O.sgd(1.0), T.scale_by_backtracking_linesearch(20, max_learning_rate=x)),
        "max_learning_rate",
        0.5,
        0.25,
    ),
    "scale_by_lbfgs": Row(lambda x: lo.chain(T.scale_by_lbfgs(3), O.sgd(x)), "learning_rate", 0.1, 0.01),
    "scale_by_levenberg_marquardt": Row(
        lambda x: T.scale_by_levenberg_marquardt(weights, initial_damping=x), "initial_damping", 9.0, 3.0
    ),
    "scale_by_zoom_linesearch": Row(
        lambda x: lo.chain(O.sgd(x), T.scale_by_zoom_linesearch(20, approx_dec_rtol=9.0)), "learning_rate", 0.1, 0.01
    ),
    # distances and bets
    "mechanize": Row(lambda x: T.mechanize(O.sgd(1.0), s_init=x), "s_init", 0.1, 0.01),
    "scale_by_cocob": Row(T.scale_by_cocob, "alpha", 10.0, 100.0),
    "scale_by_dadapt_adamw": Row(partial(T.scale_by_dadapt_adamw, estim_lr0=0.1), "learning_rate", 0.1, 0.01),
    "scale_by_distance_over_gradients": Row(T.scale_by_distance_over_gradients, "reps_rel", 0.1, 0.01),
    "scale_by_dog": Row(lambda x: T.scale_by_dog(("heuristic", x)), "init_step", 0.1, 0.01),
    "scale_by_dowg": Row(partial(T.scale_by_dowg, 0.1), "eps", 0.1, 0.01),
    "scale_by_prodigy": Row(partial(T.scale_by_prodigy, estim_lr0=0.1), "learning_rate", 0.1, 0.01),
    # losses as arguments
    "hypergradient": Row(
        lambda x: T.hypergradient(T.scale_by_adam(), x, 0.01), "learning_rate", 0.1, 0.01, unbounded=True
    ),
    "reduce_on_plateau": Row(lambda x: T.reduce_on_plateau(x, 1), "factor", 0.5, 0.1, unbounded=True),
    "scale_by_momo": Row(partial(T.scale_by_momo, adapt_lower_bound=True), "learning_rate", 0.1, 0.01),
    "scale_by_momo_adam": Row(partial(T.scale_by_momo_adam, weight_decay=0.1), "learning_rate", 0.1, 0.01),
    "scale_by_polyak": Row(lambda x: T.scale_by_polyak(max_learning_rate=x), "max_learning_rate", 0.1, 0.01),
    # points, shells and samples
    "add_cautious_weight_decay": Row(T.add_cautious_weight_decay, "weight_decay", 0.1, 0.01, unbounded=True),
    "differentially_private_aggregate": Row(
        lambda x: OfOneExample(T.differentially_private_aggregate(x, 0.0)), "l2_norm_clip", 0.5, 0.1
    ),
    "hutchinson_estimator_diag_hessian": Row(
        lambda x: lo.chain(T.hutchinson_estimator_diag_hessian(), O.sgd(x)), "learning_rate", 0.1, 0.01, restless=True
    ),
    "hyperball": Row(T.hyperball, "learning_rate", 0.1, 0.01),
    "maximize": Row(lambda x: T.maximize(O.adam(x)), "learning_rate", 0.1, 0.01),
    "normalize": Row(lambda x: lo.chain(T.normalize(), O.sgd(x)), "learning_rate", 0.1, 0.01),
    "sam": Row(lambda x: T.sam(O.adam(x), lo.chain(T.normalize(), T.scale(-0.05))), "learning_rate", 0.1, 0.01),
    "scale_by_sophia": Row(partial(T.scale_by_sophia, update_interval=2), "b1", 0.9, 0.5),
    # matrices
    "scale_by_apollo": Row(lambda x: T.scale_by_apollo(2, 3, 4.0, T.scale_by_adam(x)), "b1", 0.9, 0.5, unbounded=True),
    "scale_by_galore": Row(lambda x: T.scale_by_galore(2, 3, 0.5, T.scale_by_adam(x)), "b1", 0.9, 0.5),
    "scale_by_muon": Row(lambda x: T.scale_by_muon(beta=x), "beta", 0.9, 0.5, magnifies=4),  # small singular values
    "scale_by_shape": Row(lambda x: lo.chain(T.scale_by_shape(), O.sgd(x)), "learning_rate", 0.1, 0.01, unbounded=True),
    "split_real_and_imaginary": Row(
        lambda x: T.split_real_and_imaginary(T.scale_by_trust_ratio(x)), "min_norm", 30.0, 20.0
    ),
    # averages of points
    "gpa": Row(lambda x: lo.chain(O.adam(x), T.gpa()), "learning_rate", 0.1, 0.01),
    "lookahead": Row(lambda x: T.lookahead(O.adam(x), 2, 0.5), "learning_rate", 0.1, 0.01),
    "scale_by_optimistic_learning_rate": Row(
        lambda x: T.scale_by_optimistic_learning_rate(x, 0.05), "learning_rate", 0.1, 0.01, unbounded=True
    ),
    "scale_by_schedule_free": Row(
        partial(T.scale_by_schedule_free, warmup_steps=2), "learning_rate", 0.1, 0.01, unbounded=True
    ),
    "schedule_free": Row(lambda x: T.schedule_free(O.sgd(x), x), "learning_rate", 0.1, 0.01, unbounded=True),
}
OPTIMIZERS = {
    "acprop": Row(O.acprop, "learning_rate", 0.1, 0.01, unbounded=True),
    "adabelief": Row(O.adabelief, "learning_rate", 0.1, 0.01),
    "adadelta": Row(O.adadelta, "learning_rate", 0.1, 0.01),
    "adafactor": Row(partial(O.adafactor, min_dim_size_to_factor=2, momentum=0.9), "learning_rate", 0.1, 0.01),
    "adagrad": Row(O.adagrad, "learning_rate", 0.1, 0.01),
    "adam": Row(partial(O.adam, nesterov=True), "learning_rate", 0.1, 0.01),
    "adam_mini": Row(O.adam_mini, "learning_rate", 0.1, 0.01),
    "adamax": Row(O.adamax, "learning_rate", 0.1, 0.01),
    "adamaxw": Row(partial(O.adamaxw, mask=matrices), "learning_rate", 0.1, 0.01),
    "adamw": Row(partial(O.adamw, mask=matrices), "learning_rate", 0.1, 0.01),
    "adan": Row(O.adan, "learning_rate", 0.1, 0.01),
    "ademamix": Row(O.ademamix, "learning_rate", 0.1, 0.01),
    "adopt": Row(O.adopt, "learning_rate", 0.1, 0.01),
    "amsgrad": Row(O.amsgrad, "learning_rate", 0.1, 0.01),
    "asgd": Row(O.asgd, "learning_rate", 0.1, 0.01),
    "came": Row(O.came, "learning_rate", 0.1, 0.01),
    "fromage": Row(O.fromage, "learning_rate", 0.1, 0.01),
    "ftrl": Row(O.ftrl, "learning_rate", 0.1, 0.01, unbounded=True),
    "lamb": Row(partial(O.lamb, weight_decay=0.1, mask=matrices), "learning_rate", 0.1, 0.01),
    "lars": Row(O.lars, "learning_rate", 0.1, 0.01),
    "lazy_adam": Row(O.lazy_adam, "learning_rate", 0.1, 0.01),
    "lion": Row(partial(O.lion, mask=matrices), "learning_rate", 0.1, 0.01),
    "madgrad": Row(O.madgrad, "learning_rate", 0.1, 0.01),
    "nadam": Row(partial(O.nadam, momentum_decay=0.004), "learning_rate", 0.1, 0.01),
    "nadamw": Row(partial(O.nadamw, mask=matrices), "learning_rate", 0.1, 0.01),
    "novograd": Row(O.novograd, "learning_rate", 0.1, 0.01),
    "radam": Row(partial(O.radam, nesterov=True), "learning_rate", 0.1, 0.01, unbounded=True),
    "rmsprop": Row(partial(O.rmsprop, momentum=0.9, centered=True), "learning_rate", 0.1, 0.01),
    "rprop": Row(O.rprop, "learning_rate", 0.1, 0.01),
    "sgd": Row(partial(O.sgd, momentum=0.9, nesterov=True), "learning_rate", 0.1, 0.01),
    "sign_sgd": Row(O.sign_sgd, "learning_rate", 0.1, 0.01),
    "signum": Row(O.signum, "learning_rate", 0.1, 0.01),
    "simplified_ademamix": Row(O.simplified_ademamix, "learning_rate", 0.1, 0.01),
    "sm3": Row(O.sm3, "learning_rate", 0.1, 0.01),
    "yogi": Row(O.yogi, "learning_rate", 0.1, 0.01, restless=True),
    # quasi-Newton
    "lbfgs": Row(
        lambda x: O.lbfgs(0.1, linesearch=T.scale_by_backtracking_linesearch(20, max_learning_rate=x)),
        "max_learning_rate",
        0.5,
        0.25,
    ),
    "levenberg_marquardt": Row(partial(O.levenberg_marquardt, weights, "cholesky"), "initial_damping", 9.0, 3.0),
    # distances and bets
    "cocob": Row(lambda x: O.cocob(alpha=x), "alpha", 10.0, 100.0),
    "dadapt_adamw": Row(partial(O.dadapt_adamw, estim_lr0=0.1), "learning_rate", 0.1, 0.01),
    "dog": Row(partial(O.dog, init_step=("distance", 0.1), weight_decay=0.1), "learning_rate", 0.1, 0.01),
    "dowg": Row(partial(O.dowg, weight_decay=0.1, mask=matrices), "learning_rate", 0.1, 0.01),
    "prodigy": Row(partial(O.prodigy, estim_lr0=0.1, weight_decay=0.1), "learning_rate", 0.1, 0.01),
    # losses as arguments
    "hypergradient_adam": Row(partial(O.hypergradient_adam, multiplicative=True), "learning_rate", 0.1, 0.01),
    "hypergradient_sgd": Row(O.hypergradient_sgd, "learning_rate", 0.1, 0.01, unbounded=True),
    "momo": Row(O.momo, "learning_rate", 0.1, 0.01),
    "momo_adam": Row(O.momo_adam, "learning_rate", 0.1, 0.01),
    "polyak_sgd": Row(O.polyak_sgd, "max_learning_rate", 0.1, 0.01),
    # points, shells and samples
    "adamh": Row(O.adamh, "learning_rate", 0.1, 0.01),
    "dpsgd": Row(lambda x: OfOneExample(O.dpsgd(x, 0.5, 0.0, momentum=0.9)), "learning_rate", 0.1, 0.01),
    "sophia": Row(partial(O.sophia, weight_decay_mask=matrices), "learning_rate", 0.1, 0.01),
    # matrices
    "apollo": Row(
        partial(O.apollo, rank=2, weight_decay=0.1, mask=matrices), "learning_rate", 0.1, 0.01, unbounded=True
    ),
    "apollo_mini": Row(partial(O.apollo_mini, weight_decay=0.1), "learning_rate", 0.1, 0.01, unbounded=True),
    "galore": Row(partial(O.galore, rank=2, weight_decay=0.1, mask=matrices), "learning_rate", 0.1, 0.01),
    "muon": Row(partial(O.muon, weight_decay=0.1), "learning_rate", 0.1, 0.01),
    # averages of points
    "cautious_adamw": Row(partial(O.cautious_adamw, mask=matrices), "learning_rate", 0.1, 0.01),
    "cautious_lion": Row(O.cautious_lion, "learning_rate", 0.1, 0.01),
    "gpa_adamw": Row(partial(O.gpa_adamw, weight_decay=0.1, mask=matrices), "learning_rate", 0.1, 0.01),
    "mars_adamw": Row(partial(O.mars_adamw, weight_decay=0.1, mask=matrices), "learning_rate", 0.1, 0.01),
    "mars_lion": Row(O.mars_lion, "learning_rate", 0.1, 0.01),
    "noisy_sgd": Row(O.noisy_sgd, "learning_rate", 0.1, 0.01, restless=True, unbounded=True),
    "optimistic_adam": Row(lambda x: O.optimistic_adam(x, 0.05), "learning_rate", 0.1, 0.01),
    "optimistic_adam_v2": Row(O.optimistic_adam_v2, "learning_rate", 0.1, 0.01),
    "optimistic_gradient_descent": Row(O.optimistic_gradient_descent, "learning_rate", 0.1, 0.01, unbounded=True),
    "schedule_free_adamw": Row(partial(O.schedule_free_adamw, warmup_steps=2), "learning_rate", 0.1, 0.01),
    "schedule_free_sgd": Row(
        partial(O.schedule_free_sgd, weight_decay=0.1), "learning_rate", 0.1, 0.01, unbounded=True
    ),
}
