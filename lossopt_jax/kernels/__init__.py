"""Hot array programs: each a plain jax.numpy reference plus backends that may decline. None is needed yet."""
