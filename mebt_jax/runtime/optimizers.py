"""AdamW as both training loops use it: gradient clipping, warm-up and decay of the learning rate,
and weight decay of kernels alone.
"""

from typing import Any

import jax
import optax

from mebt_jax.runtime.runtime_config import TrainingConfig

# Name -> schedule of (peak rate, steps after the warm-up).
DECAYS = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, max(steps, 1)),
}


def learning_rate_schedule(config: TrainingConfig) -> optax.Schedule:
    """Step -> rate: linear from 0 over `warmup_steps`, then constant or a half cosine down to 0 at
    the last step.
    """
    main = DECAYS[config.decay](config.learning_rate, config.steps - config.warmup_steps)
    if config.warmup_steps == 0:
        return main
    # The first step already moves the weights: (step + 1) / warmup_steps. In
    # optax.warmup_cosine_decay_schedule the first rate is 0, or the decay begins one step early.
    warmup = optax.linear_schedule(
        config.learning_rate / config.warmup_steps, config.learning_rate, config.warmup_steps - 1
    )
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def decay_mask(params: Any) -> Any:
    """Tree of bools: True for the kernels of linear layers and convolutions.

    Note: mirrors configure_optimizers of the official mebt/transformer.py, where norms, biases and
    embeddings (of codes, positions, masks and latents) are not decayed.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _leaf_name(path) == "kernel", params)


def make_optimizer(config: TrainingConfig, params: Any) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay for parameters of the structure of `params` (arrays or
    ShapeDtypeStructs).
    """
    adamw = optax.adamw(
        learning_rate_schedule(config),
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=decay_mask(params),
    )
    return (
        optax.chain(optax.clip_by_global_norm(config.grad_clip_norm), adamw)
        if config.grad_clip_norm > 0
        else adamw
    )


def _leaf_name(path: tuple[Any, ...]) -> str:
    names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return names[-1] if names else ""
