"""Four ways to turn features into codes behind one interface: `init_codebook`, `quantize`,
`lookup`, `update_codebook`.

Stands between `Tokenizer.encode` and `Tokenizer.decode`. `config.tokenizer.quantizer` names the
kind:

- "ema": embeddings that follow the features by running averages, and restart
(mebt/modules/codebook.py; the paper's configs);
- "gradient": embeddings that are parameters of the tokenizer, trained by the codebook loss (the
paper's equation 1);
- "fsq": every feature is squashed and rounded to one of a few levels (Mentzer et al. 2023, finite
scalar quantization);
- "lfq": the signs of the features are the code (Yu et al. 2023, MAGVIT-v2, lookup-free
quantization).

Whatever the kind, a codebook is a table of embeddings [V, E] and running counts, so that all that
comes after (decoding, the start of the transformer, hashes) need not know which it is. The last two
search nothing: their table is fixed.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import struct
from jax import lax

from mebt_jax.config import TokenizerConfig

CODE_BLOCK = (
    2048  # codes compared at one time, so that the [n, V] distances to a large codebook never exist
)
SMOOTHING = 1e-7  # added to every running count (official value)
TILE_NOISE = (
    0.01  # times E^-1/2: keeps codes apart that are drawn from the same feature (official value)
)
MARGIN = 1e-3  # by how much squashed features may pass the outermost levels (FSQ, appendix A)
# of the code probabilities in the entropy terms, in squared distances to codes of entries +-1
TEMPERATURE = 1.0
# of one choice's weight in the running counts: at the decay 0.99, what was not chosen in 460
# batches falls below
DEAD = 0.01


@struct.dataclass
class Codebook:
    """What each code means and how often it is chosen; all float32."""

    embeddings: (
        jax.Array | None
    )  # [V, E] what the decoder sees; None of "gradient" in training: `Tokenizer.codes` holds them
    counts: jax.Array  # [V] running mean of the features per batch that chose each code
    sums: jax.Array | None  # [V, E] running mean of the sum of those features; "ema" alone has them
    kind: str = struct.field(pytree_node=False, default="ema")
    levels: tuple[int, ...] = struct.field(
        pytree_node=False, default=()
    )  # values of each feature of a fixed table


@struct.dataclass
class Quantized:
    # [..., E] those of the codes; their gradient goes to the features as if nothing had been
    # rounded
    embeddings: jax.Array
    codes: jax.Array  # [...] int32
    loss: jax.Array  # [] the quantizer's own terms, weighted
    # Scalars: commitment; quantization_error, the commitment over the variance of the features,
    # above 1 when one code for all would be nearer than the codes are; perplexity, usage, dead;
    # terms of the kind.
    metrics: dict[str, jax.Array]


def init_codebook(config: TokenizerConfig, key: jax.Array) -> Codebook:
    """The codebook of `config.quantizer` to restore into or to fit (`fitting.py`) before the first
    training step.
    """
    counts = jnp.zeros((config.codes,))
    if config.quantizer == "ema":
        embeddings = jax.random.normal(key, (config.codes, config.code_width))
        return Codebook(embeddings, counts, sums=jnp.copy(embeddings))
    if config.quantizer == "gradient":
        return Codebook(None, counts, sums=None, kind="gradient")
    levels = config.levels if config.quantizer == "fsq" else (2,) * config.code_width
    digits = np.stack(np.unravel_index(np.arange(config.codes), levels), axis=-1)  # [V, E]
    halves = np.array(levels) // 2 if config.quantizer == "fsq" else np.full(len(levels), 0.5)
    centre = halves if config.quantizer == "fsq" else 0.5
    return Codebook(
        jnp.asarray((digits - centre) / halves, jnp.float32),
        counts,
        sums=None,
        kind=config.quantizer,
        levels=levels,
    )


def init_from_features(codebook: Codebook, features: jax.Array, key: jax.Array) -> Codebook:
    """Codebook of kind "ema" or "gradient" whose embeddings are random features of a first batch
    [..., E].
    """
    drawn = _draw(features, codebook.counts.size, key)
    return codebook.replace(
        embeddings=drawn,
        counts=jnp.ones_like(codebook.counts),
        sums=None if codebook.sums is None else jnp.copy(drawn),
    )


def quantize(codebook: Codebook, features: jax.Array, config: TokenizerConfig) -> Quantized:
    """Replaces each feature of [..., E] by the embedding of its code, with a straight-through
    gradient.
    """
    codes = nearest_codes(codebook, features)
    embeddings = lookup(codebook, codes)  # [..., E]
    features = features.astype(jnp.float32)
    features = squash(features, codebook.levels) if codebook.kind == "fsq" else features
    target = lax.stop_gradient(embeddings)
    commitment = jnp.mean(jnp.square(features - target))
    variance = jnp.mean(jnp.var(features, axis=range(features.ndim - 1)))
    metrics = {
        "commitment": commitment,
        "quantization_error": commitment / (variance + 1e-12),
        "dead": dead_share(codebook, config.codebook_decay),
        **code_metrics(codes, config.codes),
    }
    loss = config.commitment_weight * commitment
    if codebook.kind == "gradient":
        loss = loss + jnp.mean(jnp.square(embeddings - lax.stop_gradient(features)))
    elif codebook.kind == "fsq":
        loss = jnp.zeros(())  # squashed features cannot run away from their codes
    elif codebook.kind == "lfq":
        certainty, variety = sign_entropies(features)
        loss = loss + config.entropy_weight * (certainty - variety)
        metrics |= {"entropy_per_code": certainty, "entropy_of_codes": variety}
    return Quantized(features + lax.stop_gradient(target - features), codes, loss, metrics)


def squash(features: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Features [..., E] into the reach of their levels, in units in which the outermost are near -1
    and 1; 0 stays 0.
    """
    counts = np.array(levels)
    reach = (counts - 1) * (1 + MARGIN) / 2
    offset = np.where(
        counts % 2 == 0, 0.5, 0.0
    )  # even numbers of levels have one more below 0 than above
    shift, spread = np.arctanh(offset / reach).astype(np.float32), tuple(range(features.ndim - 1))
    reach, offset, shift, halves = (
        jnp.expand_dims(np.float32(x), spread) for x in (reach, offset, shift, counts // 2)
    )
    return (jnp.tanh(features + shift) * reach - offset) / halves


def sign_entropies(features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Entropies in nats: the mean of a feature's code [..., E] -> [], to be made small, and of all
    codes together, large.

    The probability of a code falls with its squared distance; it is a product over the E signs. So
    the first entropy is a sum over signs, and the mean probability of all 2^E codes is one matrix
    product of two halves of the signs: exact, where MAGVIT-v2 takes groups of signs as independent.
    """
    flat = features.reshape(-1, features.shape[-1])  # [n, E]
    logits = 4 / TEMPERATURE * flat  # log odds of +1 against -1
    certainty = jnp.sum(_binary_entropy(logits), axis=-1).mean()
    halves = [
        _sign_probabilities(part) for part in jnp.split(logits, [flat.shape[-1] // 2], axis=-1)
    ]  # 2 x [n, 2^(E/2)]
    mean = jnp.matmul(halves[0].T, halves[1], precision=lax.Precision.HIGHEST) / len(flat)
    return certainty, -jnp.sum(mean * jnp.log(mean + 1e-10))


def _binary_entropy(logits: jax.Array) -> jax.Array:
    return jax.nn.softplus(logits) - logits * jax.nn.sigmoid(logits)


def _sign_probabilities(logits: jax.Array) -> jax.Array:
    """Log odds [n, b] of independent signs -> probabilities [n, 2^b] of all their combinations."""
    total = jnp.ones((len(logits), 1))
    for column in (
        jnp.split(jax.nn.sigmoid(logits), logits.shape[1], axis=1) if logits.shape[1] else []
    ):
        total = jnp.concatenate([total * (1 - column), total * column], axis=1)
    return total


def lookup(codebook: Codebook, codes: jax.Array) -> jax.Array:
    """Embeddings [..., E] of code indices [...]."""
    return jnp.take(codebook.embeddings, codes, axis=0)


def nearest_codes(codebook: Codebook, features: jax.Array) -> jax.Array:
    """Code of each feature of [..., E], int32 [...]: of the nearest embedding, the lowest of equal
    ones.
    """
    if codebook.kind in ("ema", "gradient"):
        return _search(codebook, features)
    features = lax.stop_gradient(features).astype(jnp.float32)
    counts = np.array(codebook.levels)
    if codebook.kind == "lfq":
        digits = (features > 0).astype(jnp.int32)
    else:
        halves = jnp.expand_dims(counts // 2, tuple(range(features.ndim - 1)))
        digits = jnp.round(squash(features, codebook.levels) * halves).astype(jnp.int32) + halves
    places = math.prod(codebook.levels) // np.cumprod(
        counts
    )  # [E] what one step along each feature adds to the code
    return digits @ places.astype(np.int32)


def _search(codebook: Codebook, features: jax.Array) -> jax.Array:
    features = lax.stop_gradient(features).astype(jnp.float32)
    num_codes = codebook.counts.size
    block = min(CODE_BLOCK, num_codes)
    padding = -num_codes % block
    embeddings = jnp.pad(codebook.embeddings, ((0, padding), (0, 0)))
    half_norms = jnp.pad(
        0.5 * jnp.sum(jnp.square(codebook.embeddings), axis=-1),
        (0, padding),
        constant_values=jnp.inf,
    )

    def compare(best, candidates):
        offset, embeddings, half_norms = candidates  # [], [block, E], [block]
        # |x - e|^2 = |x|^2 - 2 (x.e - |e|^2 / 2): the nearest code has the highest score. Features
        # keep their axes, which may be split over devices.
        scores = jnp.einsum("...e,ve->...v", features, embeddings, precision=lax.Precision.HIGHEST)
        scores = scores - jnp.expand_dims(
            half_norms, tuple(range(features.ndim - 1))
        )  # [..., block]
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


def update_codebook(
    codebook: Codebook,
    features: jax.Array,
    codes: jax.Array,
    key: jax.Array,
    *,
    decay: float,
    restart_threshold: float,
) -> Codebook:
    """One step of the running averages, then restart of the codes that are hardly used; other kinds
    than "ema" only count.

    Under jit with a batch split over devices the counts and sums are those of the whole batch.

    Args:
        codebook: before the step.
        features: [..., E] of this batch.
        codes: [...] chosen by `quantize` with this codebook.
        key: for the features that restarted codes are set to.
        decay: weight of the past in counts and sums.
        restart_threshold: codes with a running count below it are restarted.

    Note: a restarted code gets a new embedding but keeps its counts and sums
    (mebt/modules/codebook.py:89), so it is either chosen often enough from now on or drawn again at
    the next step.
    """
    num_codes = codebook.counts.size
    counts = decay * codebook.counts + (1 - decay) * count_codes(codes, num_codes)
    if codebook.kind != "ema":
        return codebook.replace(counts=counts)
    flat = lax.stop_gradient(features).astype(jnp.float32).reshape(-1, features.shape[-1])
    batch_sums = jax.ops.segment_sum(flat, codes.reshape(-1), num_codes)
    sums = decay * codebook.sums + (1 - decay) * batch_sums

    total = jnp.sum(counts)
    smoothed = (counts + SMOOTHING) / (total + num_codes * SMOOTHING) * total
    used = jnp.expand_dims(counts >= restart_threshold, -1)
    embeddings = jnp.where(used, sums / jnp.expand_dims(smoothed, -1), _draw(flat, num_codes, key))
    return codebook.replace(embeddings=embeddings, counts=counts, sums=sums)


def count_codes(codes: jax.Array, num_codes: int) -> jax.Array:
    """How often each code occurs, float32 [V]."""
    return jax.ops.segment_sum(jnp.ones((codes.size,)), codes.reshape(-1), num_codes)


def code_metrics(codes: jax.Array, num_codes: int) -> dict[str, jax.Array]:
    """`perplexity` of the codes of a batch (1 to V) and `usage`, the share of the codebook that
    occurs in it (0 to 1).
    """
    counts = count_codes(codes, num_codes)
    probabilities = counts / codes.size
    entropy = -jnp.sum(probabilities * jnp.log(probabilities + 1e-10))
    return {"perplexity": jnp.exp(entropy), "usage": jnp.mean(counts > 0)}


def dead_share(codebook: Codebook, decay: float) -> jax.Array:
    """Share of the codes (0 to 1) that were not chosen yet, or not in the last hundreds of batches
    (see DEAD).
    """
    return jnp.mean(codebook.counts < DEAD * (1 - decay))


def _draw(features: jax.Array, number: int, key: jax.Array) -> jax.Array:
    """`number` different random rows of features [..., E]; fewer features than that are repeated
    with a little noise.
    """
    flat = lax.stop_gradient(features).astype(jnp.float32).reshape(-1, features.shape[-1])
    choice_key, noise_key = jax.random.split(key)
    rows = flat.shape[0]
    repeats = -(-number // rows)
    chosen = jax.random.permutation(choice_key, rows * repeats)[:number] % rows
    drawn = flat[chosen]  # [number, E]
    if repeats == 1:
        return drawn
    return drawn + TILE_NOISE * flat.shape[-1] ** -0.5 * jax.random.normal(noise_key, drawn.shape)
