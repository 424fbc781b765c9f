"""Losses: predictions and targets → one value per example or element; `mean` and `total` reduce a batch.

Predictions come first. Nothing broadcasts between predictions and targets, half precision is computed and returned in
float32, and every loss is in `registry` by its name and aliases, with what it is in `.spec`.
"""

from lossopt_jax.losses._adaptive import (
    adaptive_log_softmax,
    adaptive_softmax_init,
    adaptive_softmax_loss,
)
from lossopt_jax.losses._angular import (
    arcface_loss,
    cosface_loss,
)
from lossopt_jax.losses._contrastive import (
    circle_loss,
    info_nce,
    ntxent,
    supervised_contrastive_loss,
)
from lossopt_jax.losses._cosine import (
    cosine_distance,
    cosine_similarity,
    pairwise_distance,
)
from lossopt_jax.losses._crossentropy import (
    binary_crossentropy,
    categorical_crossentropy,
    nll_loss,
    sigmoid_binary_cross_entropy,
    smooth_labels,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
    sparse_categorical_crossentropy,
)
from lossopt_jax.losses._ctc import (
    ctc_loss,
    ctc_loss_with_forward_probs,
)
from lossopt_jax.losses._distillation import distillation_loss
from lossopt_jax.losses._divergences import (
    bhattacharyya_distance,
    generalized_kl_divergence,
    hellinger_distance,
    jensen_shannon_divergence,
    kl_divergence,
    kl_divergence_with_log_targets,
    kullback_leibler_divergence,
    renyi_divergence,
)
from lossopt_jax.losses._focal import (
    asymmetric_loss,
    binary_focal_crossentropy,
    categorical_focal_crossentropy,
    categorical_generalized_cross_entropy,
    poly_loss_cross_entropy,
    sigmoid_focal_loss,
    softmax_focal_loss_with_integer_labels,
)
from lossopt_jax.losses._lift import (
    LossSpec,
    registry,
)
from lossopt_jax.losses._likelihoods import (
    beta_nll_loss,
    gaussian_nll_loss,
    laplace_nll_loss,
    negative_binomial_nll_loss,
    poisson,
    poisson_nll_loss,
    student_t_nll_loss,
)
from lossopt_jax.losses._linear import (
    clip_loss,
    linear_softmax_cross_entropy,
    mean_linear_distillation,
    mean_linear_softmax_cross_entropy,
    siglip_loss,
)
from lossopt_jax.losses._margins import (
    categorical_hinge,
    hinge_embedding_loss,
    hinge_loss,
    multi_margin_loss,
    multiclass_hinge_loss,
    multiclass_perceptron_loss,
    multiclass_sparsemax_loss,
    multilabel_margin_loss,
    multilabel_soft_margin_loss,
    perceptron_loss,
    soft_margin_loss,
    sparsemax_loss,
    squared_hinge,
)
from lossopt_jax.losses._noisy import (
    bi_tempered_loss,
    symmetric_cross_entropy,
)
from lossopt_jax.losses._ordinal import (
    coral_loss,
    cumulative_link_loss,
)
from lossopt_jax.losses._preferences import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    simpo_loss,
    token_log_probs,
)
from lossopt_jax.losses._ranking import (
    approx_ndcg_loss,
    lambda_rank_loss,
    list_mle_loss,
    make_fenchel_young_loss,
    ranking_softmax_loss,
)
from lossopt_jax.losses._reductions import (
    mean,
    total,
)
from lossopt_jax.losses._regression import (
    absolute_error,
    absolute_percentage_error,
    expectile_loss,
    general_robust_loss,
    huber_loss,
    l2_loss,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    quantile_loss,
    smooth_l1_loss,
    squared_error,
    squared_log_error,
)
from lossopt_jax.losses._segmentation import (
    binary_dice_loss,
    boundary_loss,
    dice_loss,
    focal_tversky_loss,
    lovasz_hinge,
    lovasz_softmax_loss,
    multiclass_generalized_dice_loss,
    tversky_loss,
)
from lossopt_jax.losses._transducer import (
    transducer_loss,
)
from lossopt_jax.losses._triplets import (
    cosine_embedding_loss,
    margin_ranking_loss,
    triplet_margin_loss,
    triplet_margin_with_distance_loss,
)

safe_softmax_cross_entropy = softmax_cross_entropy
convex_kl_divergence = generalized_kl_divergence
