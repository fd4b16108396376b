"""Vector quantization with a codebook that follows the encoder by running averages instead of gradients.

Stands between `Tokenizer.encode` and `Tokenizer.decode`. The codebook is plain data: `quantize` reads it in the forward
pass and `update_codebook` returns the next one after each training step. Mirrors mebt/modules/codebook.py.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct
from jax import lax

from mebt_jax.config import TokenizerConfig

CODE_BLOCK = 2048  # codes compared at one time, so that the [n, V] distances to a large codebook never exist
SMOOTHING = 1e-7  # added to every running count (official value)
TILE_NOISE = 0.01  # times E^-1/2: keeps codes apart that are drawn from the same feature (official value)


@struct.dataclass
class Codebook:
    """What the decoder sees, and the running averages behind it; all float32."""

    embeddings: jax.Array  # [V, E]
    counts: jax.Array  # [V] running mean of the features per batch that chose each code
    sums: jax.Array  # [V, E] running mean of the sum of those features


@struct.dataclass
class Quantized:
    embeddings: jax.Array  # [..., E] nearest embeddings; their gradient goes to the features unchanged
    codes: jax.Array  # [...] int32
    commitment: jax.Array  # [] mean squared distance between features and embeddings, unweighted


def init_codebook(config: TokenizerConfig, key: jax.Array) -> Codebook:
    """A codebook to restore into or to give to `init_from_features`, which should come before the first training step."""
    embeddings = jax.random.normal(key, (config.codes, config.code_width))
    return Codebook(embeddings=embeddings, counts=jnp.zeros((config.codes,)), sums=jnp.copy(embeddings))


def init_from_features(codebook: Codebook, features: jax.Array, key: jax.Array) -> Codebook:
    """Codebook whose embeddings are random features of a first batch [..., E]."""
    drawn = _draw(features, codebook.counts.size, key)
    return Codebook(embeddings=drawn, counts=jnp.ones_like(codebook.counts), sums=jnp.copy(drawn))


def quantize(codebook: Codebook, features: jax.Array) -> Quantized:
    """Replaces each feature of [..., E] by the nearest embedding, with a straight-through gradient."""
    features = features.astype(jnp.float32)
    codes = nearest_codes(codebook, features)
    embeddings = lax.stop_gradient(lookup(codebook, codes))
    commitment = jnp.mean(jnp.square(features - embeddings))
    return Quantized(features + lax.stop_gradient(embeddings - features), codes, commitment)


def lookup(codebook: Codebook, codes: jax.Array) -> jax.Array:
    """Embeddings [..., E] of code indices [...]."""
    return jnp.take(codebook.embeddings, codes, axis=0)


def nearest_codes(codebook: Codebook, features: jax.Array) -> jax.Array:
    """Index of the embedding nearest to each feature of [..., E], int32 [...]; the lowest index wins a tie."""
    features = lax.stop_gradient(features).astype(jnp.float32)
    num_codes = codebook.counts.size
    block = min(CODE_BLOCK, num_codes)
    padding = -num_codes % block
    embeddings = jnp.pad(codebook.embeddings, ((0, padding), (0, 0)))
    half_norms = jnp.pad(0.5 * jnp.sum(jnp.square(codebook.embeddings), axis=-1), (0, padding), constant_values=jnp.inf)

    def compare(best, candidates):
        offset, embeddings, half_norms = candidates  # [], [block, E], [block]
        # |x - e|^2 = |x|^2 - 2 (x.e - |e|^2 / 2): the nearest code has the highest score. Features keep their axes, which
        # may be split over devices.
        scores = jnp.einsum("...e,ve->...v", features, embeddings, precision=lax.Precision.HIGHEST)
        scores = scores - jnp.expand_dims(half_norms, tuple(range(features.ndim - 1)))  # [..., block]
        index = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        score = jnp.max(scores, axis=-1)
        better = score > best[0]
        return (jnp.where(better, score, best[0]), jnp.where(better, offset + index, best[1])), None

    candidates = (
        jnp.arange(0, num_codes, block, dtype=jnp.int32),
        rearrange(embeddings, "(n block) e -> n block e", block=block),
        rearrange(half_norms, "(n block) -> n block", block=block),
    )
    start = (jnp.full(features.shape[:-1], -jnp.inf), jnp.zeros(features.shape[:-1], jnp.int32))
    (_, codes), _ = lax.scan(compare, start, candidates)
    return codes


def update_codebook(codebook: Codebook, features: jax.Array, codes: jax.Array, key: jax.Array, *, decay: float,
                    restart_threshold: float) -> Codebook:
    """One step of the running averages, then restart of the codes that are hardly used.

    Under jit with a batch split over devices the counts and sums are those of the whole batch.

    Args:
        codebook: before the step.
        features: [..., E] of this batch.
        codes: [...] chosen by `quantize` with this codebook.
        key: for the features that restarted codes are set to.
        decay: weight of the past in counts and sums.
        restart_threshold: codes with a running count below it are restarted.

    Note: a restarted code gets a new embedding but keeps its counts and sums (mebt/modules/codebook.py:89), so it is
    either chosen often enough from now on or drawn again at the next step.
    """
    flat = lax.stop_gradient(features).astype(jnp.float32).reshape(-1, features.shape[-1])
    num_codes = codebook.counts.size
    batch_sums = jax.ops.segment_sum(flat, codes.reshape(-1), num_codes)
    counts = decay * codebook.counts + (1 - decay) * count_codes(codes, num_codes)
    sums = decay * codebook.sums + (1 - decay) * batch_sums

    total = jnp.sum(counts)
    smoothed = (counts + SMOOTHING) / (total + num_codes * SMOOTHING) * total
    used = jnp.expand_dims(counts >= restart_threshold, -1)
    embeddings = jnp.where(used, sums / jnp.expand_dims(smoothed, -1), _draw(flat, num_codes, key))
    return Codebook(embeddings=embeddings, counts=counts, sums=sums)


def count_codes(codes: jax.Array, num_codes: int) -> jax.Array:
    """How often each code occurs, float32 [V]."""
    return jax.ops.segment_sum(jnp.ones((codes.size,)), codes.reshape(-1), num_codes)


def code_metrics(codes: jax.Array, num_codes: int) -> dict[str, jax.Array]:
    """`perplexity` of the codes of a batch (1 to V) and `usage`, the share of the codebook that occurs in it (0 to 1)."""
    counts = count_codes(codes, num_codes)
    probabilities = counts / codes.size
    entropy = -jnp.sum(probabilities * jnp.log(probabilities + 1e-10))
    return {"perplexity": jnp.exp(entropy), "usage": jnp.mean(counts > 0)}


def _draw(features: jax.Array, number: int, key: jax.Array) -> jax.Array:
    """`number` different random rows of features [..., E]; fewer features than that are repeated with a little noise."""
    flat = lax.stop_gradient(features).astype(jnp.float32).reshape(-1, features.shape[-1])
    choice_key, noise_key = jax.random.split(key)
    rows = flat.shape[0]
    repeats = -(-number // rows)
    chosen = jax.random.permutation(choice_key, rows * repeats)[:number] % rows
    drawn = flat[chosen]  # [number, E]
    if repeats == 1:
        return drawn
    return drawn + TILE_NOISE * flat.shape[-1]**-0.5 * jax.random.normal(noise_key, drawn.shape)
