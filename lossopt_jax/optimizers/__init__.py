"""Recipes: chains with good defaults. No arithmetic lives here."""

from lossopt_jax.optimizers._adam import (
    acprop,
    adabelief,
    adam,
    adamax,
    adamaxw,
    adamw,
    adan,
    ademamix,
    adopt,
    amsgrad,
    lazy_adam,
    nadam,
    nadamw,
    radam,
    simplified_ademamix,
    yogi,
)
from lossopt_jax.optimizers._adaptive import adadelta, adagrad, rmsprop
from lossopt_jax.optimizers._averaging import gpa_adamw, schedule_free_adamw, schedule_free_sgd
from lossopt_jax.optimizers._cautious import cautious_adamw, cautious_lion
from lossopt_jax.optimizers._curvature import sophia
from lossopt_jax.optimizers._dual_averaging import ftrl, madgrad
from lossopt_jax.optimizers._gradient_changes import (
    mars_adamw,
    mars_lion,
    noisy_sgd,
    optimistic_adam,
    optimistic_adam_v2,
    optimistic_gradient_descent,
)
from lossopt_jax.optimizers._gradient_descent import asgd, sgd
from lossopt_jax.optimizers._hyperball import adamh
from lossopt_jax.optimizers._layerwise import fromage, lamb, lars, novograd
from lossopt_jax.optimizers._learning_rate_free import cocob, dadapt_adamw, dog, dowg, prodigy
from lossopt_jax.optimizers._loss_driven import (
    hypergradient_adam,
    hypergradient_sgd,
    momo,
    momo_adam,
    polyak_sgd,
)
from lossopt_jax.optimizers._matrices import muon
from lossopt_jax.optimizers._memory_lean import adafactor, adam_mini, apollo, apollo_mini, came, galore, sm3
from lossopt_jax.optimizers._privacy import dpsgd
from lossopt_jax.optimizers._sign import lion, rprop, sign_sgd, signum
from lossopt_jax.optimizers._quasi_newton import lbfgs, levenberg_marquardt
from lossopt_jax.optimizers._registry import registry
