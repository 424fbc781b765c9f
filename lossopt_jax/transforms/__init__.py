"""Gradient → update: rules, and what wraps and composes them."""

from lossopt_jax.transforms import tree
from lossopt_jax.transforms._accumulation import apply_every, multi_steps
from lossopt_jax.transforms._adam import (
    scale_by_acprop,
    scale_by_adam,
    scale_by_adamax,
    scale_by_adan,
    scale_by_ademamix,
    scale_by_adopt,
    scale_by_amsgrad,
    scale_by_belief,
    scale_by_nadam,
    scale_by_radam,
    scale_by_simplified_ademamix,
    scale_by_yogi,
)
from lossopt_jax.transforms._adaptive import scale_by_adadelta, scale_by_rms, scale_by_rss, scale_by_stddev
from lossopt_jax.transforms._assignment import base_hungarian_algorithm, hungarian_algorithm
from lossopt_jax.transforms._averages import bias_correction, debias, ema, trace
from lossopt_jax.transforms._base import (
    GradientTransformation,
    Hyperparameter,
    PartitionState,
    RuleState,
    WrapperState,
    apply_updates,
)
from lossopt_jax.transforms._betting import mechanize, scale_by_cocob
from lossopt_jax.transforms._cautious import cautious
from lossopt_jax.transforms._chain import chain, named_chain
from lossopt_jax.transforms._clipping import (
    adaptive_grad_clip,
    clip,
    clip_by_block_rms,
    clip_by_global_norm,
    clip_by_norm,
    global_norm,
    unitwise_clip,
    unitwise_norm,
)
from lossopt_jax.transforms._compile import compile_update
from lossopt_jax.transforms._compression import compress_state
from lossopt_jax.transforms._conditions import conditionally_mask, conditionally_transform
from lossopt_jax.transforms._distance import (
    scale_by_dadapt_adamw,
    scale_by_distance_over_gradients,
    scale_by_dog,
    scale_by_dowg,
    scale_by_prodigy,
)
from lossopt_jax.transforms._distributions import Gumbel, Normal, multi_normal
from lossopt_jax.transforms._factored import (
    scale_by_adam_mini,
    scale_by_came,
    scale_by_factored_rms,
    scale_by_sm3,
)
from lossopt_jax.transforms._gradients import (
    add_noise,
    centralize,
    correct_by_previous_gradient,
    scale_by_optimistic_gradient,
    scale_by_optimistic_learning_rate,
    scale_gradient,
    zero_nans,
)
from lossopt_jax.transforms._groups import freeze, masked, partition, selective_transform
from lossopt_jax.transforms._guards import apply_if_finite, dynamic_loss_scale, skip_large_updates
from lossopt_jax.transforms._history import clip_by_norm_quantile, skip_spikes
from lossopt_jax.transforms._hyperball import hyperball
from lossopt_jax.transforms._hypergradient import hypergradient
from lossopt_jax.transforms._hyperparams import get_hyperparams, get_measurements, get_slot, set_hyperparams
from lossopt_jax.transforms._injection import inject_hyperparams
from lossopt_jax.transforms._iterates import scale_by_asgd, scale_by_ftrl, scale_by_madgrad
from lossopt_jax.transforms._layerwise import (
    normalize_by_update_norm,
    scale_by_fromage,
    scale_by_novograd,
    scale_by_param_block_norm,
    scale_by_param_block_rms,
    scale_by_trust_ratio,
)
from lossopt_jax.transforms._least_squares import scale_by_levenberg_marquardt
from lossopt_jax.transforms._lift import elementwise, leafwise, treewise, wrapper
from lossopt_jax.transforms._line_search import (
    scale_by_backtracking_linesearch,
    scale_by_zoom_linesearch,
    value_and_grad_from_state,
)
from lossopt_jax.transforms._linear_algebra import matrix_inverse_pth_root, nnls, power_iteration
from lossopt_jax.transforms._low_rank import scale_by_apollo, scale_by_galore
from lossopt_jax.transforms._matrix_functions import (
    map_stacked,
    orthogonalize_via_newton_schulz,
    polar_express_coefficients,
)
from lossopt_jax.transforms._microbatching import microbatch
from lossopt_jax.transforms._monitoring import measure_update, measure_with_ema, monitor, snapshot
from lossopt_jax.transforms._muon import scale_by_muon, scale_by_shape
from lossopt_jax.transforms._offload import offload_state
from lossopt_jax.transforms._packing import pack_small
from lossopt_jax.transforms._parameter_averages import (
    averaged_params,
    ema_params,
    incremental_update,
    periodic_update,
    swa,
)
from lossopt_jax.transforms._paths import by_path
from lossopt_jax.transforms._plateau import reduce_on_plateau
from lossopt_jax.transforms._perturbations import make_perturbed_fun
from lossopt_jax.transforms._polyak import scale_by_momo, scale_by_momo_adam, scale_by_polyak
from lossopt_jax.transforms._precision import kahan, master_weights, stochastic_rounding
from lossopt_jax.transforms._primal_averages import (
    gpa,
    gpa_eval_params,
    lookahead,
    scale_by_schedule_free,
    schedule_free,
    schedule_free_eval_params,
)
from lossopt_jax.transforms._privacy import (
    differentially_private_aggregate,
    per_example_global_norm_clip,
    per_example_layer_norm_clip,
)
from lossopt_jax.transforms._projections import (
    project_params,
    projection_box,
    projection_halfspace,
    projection_hypercube,
    projection_hyperplane,
    projection_l1_ball,
    projection_l1_sphere,
    projection_l2_ball,
    projection_l2_sphere,
    projection_linf_ball,
    projection_max_norm,
    projection_min_max_norm,
    projection_non_negative,
    projection_simplex,
    projection_unit_norm,
    projection_vector,
)
from lossopt_jax.transforms._quasi_newton import scale_by_lbfgs
from lossopt_jax.transforms._registry import registry
from lossopt_jax.transforms._rows import scale_by_lazy_adam
from lossopt_jax.transforms._rule import Axes, Extent, Slot
from lossopt_jax.transforms._safe_norms import safe_norm, safe_root_mean_squares
from lossopt_jax.transforms._scaling import (
    add_cautious_weight_decay,
    add_decay_to_initial,
    add_decayed_weights,
    add_independent_weight_decay,
    keep_params_nonnegative,
    maximize,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from lossopt_jax.transforms._scheduled import safe_increment, safe_int32_increment
from lossopt_jax.transforms._second_order import (
    fisher_diag,
    hessian_diag,
    hutchinson_estimator_diag_hessian,
    hvp,
)
from lossopt_jax.transforms._sharpness import normalize, sam
from lossopt_jax.transforms._sign import scale_by_lion, scale_by_rprop, scale_by_sign
from lossopt_jax.transforms._sophia import scale_by_sophia
from lossopt_jax.transforms._stateless import (
    identity,
    init_empty_state,
    set_to_zero,
    stateless,
    stateless_with_tree_map,
    with_extra_args_support,
)
from lossopt_jax.transforms._views import flatten, split_real_and_imaginary
from lossopt_jax.transforms.tree import map_params as tree_map_params
