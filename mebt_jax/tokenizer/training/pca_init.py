"""Data-dependent initialisation of a tokenizer: the codebook at features of real clips, and the
linear shortcuts at their principal components.

A tokenizer with a patch (`config.tokenizer.patch`) has linear shortcuts from the pixels of a token
to its features, and from embeddings to pixels. They start at the principal components of real
patches, and the codebook at the centres that k-means finds among the features: this takes seconds
and saves thousands of training steps. If the codebook is a fixed grid, the components are scaled to
the grid, and the shortcut to the pixels is the best linear map of the embeddings. The official
network has no shortcuts, and its codebook starts at random features.
"""

import jax
import jax.numpy as jnp
from jax import lax

from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.quantizers.learned_codebook import nearest_tokens
from mebt_jax.tokenizer.quantizers.quantizer import count_tokens

# Number of features to fit to; `clips_needed` gives the clips that hold them.
FEATURES_PER_EMBEDDING, MAX_FEATURES = 128, 196_608
SEEDING_FEATURES = 16_384  # how many features the first centres are drawn from
ROUNDS = 20  # of k-means


def clips_needed(codebook_size: int, tokens: int, batch_size: int, *, has_shortcut: bool) -> int:
    """Number of clips to fit to: a multiple of the batch size, which the mesh can split.

    Args:
        codebook_size: V.
        tokens: in each clip.
        batch_size: of the training.
        has_shortcut: of the tokenizer; without, one batch gives the codebook.
    """
    if not has_shortcut:
        return batch_size
    features = min(FEATURES_PER_EMBEDDING * codebook_size, MAX_FEATURES)
    return batch_size * max(1, round(features / (tokens * batch_size)))


def fit(tokenizer: Tokenizer, video: jax.Array, key: jax.Array, *, batch_size: int) -> None:
    """Sets shortcuts and codebook in place, from clips like those of the training.

    Args:
        tokenizer: with its random initial values.
        video: [n, F, H, W, 3] in [-0.5, 0.5].
        key: for the choice of the first centres.
        batch_size: clips per training step, to which the running counts of the codebook refer.
    """
    if tokenizer.has_shortcut:
        fit_shortcuts(tokenizer, video)
    if tokenizer.quantizer.fixed_codebook:
        if tokenizer.has_shortcut:
            fit_to_grid(tokenizer, video)
    elif tokenizer.has_shortcut:
        fit_codebook(tokenizer, video, key, batch_size)
    else:
        tokenizer.quantizer.init_from_features(tokenizer.encode(video[:batch_size]), key)


def fit_shortcuts(tokenizer: Tokenizer, video: jax.Array) -> None:
    """Sets the shortcuts in place so that they encode and decode `video` [n, F, H, W, 3] with the
    least squared error.
    """
    patches = tokenizer.token_patches(video)  # [n, T, H, W, P]
    mean = patches.mean(axis=(0, 1, 2, 3))  # [P]
    centred = patches.reshape(-1, mean.size) - mean[None]  # [n T H W, P]
    covariance = jnp.matmul(centred.T, centred, precision=lax.Precision.HIGHEST) / len(centred)
    _, vectors = jnp.linalg.eigh(covariance)  # ascending
    width = tokenizer.shortcut_in.bias.shape[0]  # E, which may exceed P
    components = jnp.flip(vectors, axis=1)[:, :width]  # [P, min(E, P)]
    components = jnp.pad(components, ((0, 0), (0, width - components.shape[1])))
    tokenizer.shortcut_in.kernel[...] = components
    tokenizer.shortcut_in.bias[...] = -jnp.matmul(mean, components, precision=lax.Precision.HIGHEST)
    tokenizer.shortcut_out.kernel[...] = components.T
    tokenizer.shortcut_out.bias[...] = mean


def fit_to_grid(tokenizer: Tokenizer, video: jax.Array) -> None:
    """Adapts the fitted shortcuts to a fixed codebook, in place: features get variance 1 over
    `video` [n, F, H, W, 3], so that they spread over the grid, and the shortcut to the pixels
    becomes the least-squares map of the embeddings.
    """
    scale = 1 / jnp.maximum(tokenizer.encode(video).std(axis=(0, 1, 2, 3)), 1e-6)  # [E]
    tokenizer.shortcut_in.kernel[...] = tokenizer.shortcut_in.kernel[...] * scale[None]
    tokenizer.shortcut_in.bias[...] = tokenizer.shortcut_in.bias[...] * scale
    tokens = tokenizer.tokenize(video)  # [n, T, H, W]
    embeddings = tokenizer.quantizer.lookup(tokens.reshape(-1))  # [n T H W, E]
    inputs = jnp.pad(embeddings, ((0, 0), (0, 1)), constant_values=1.0)  # the last is the bias
    patches = tokenizer.token_patches(video).reshape(len(inputs), -1)  # [n T H W, P]
    products = [
        jnp.matmul(inputs.T, x, precision=lax.Precision.HIGHEST) / len(inputs)
        for x in (inputs, patches)
    ]
    solution = jnp.linalg.solve(
        products[0] + 1e-6 * jnp.eye(inputs.shape[1]), products[1]
    )  # [E + 1, P]
    tokenizer.shortcut_out.kernel[...] = solution[:-1]
    tokenizer.shortcut_out.bias[...] = solution[-1]


def fit_codebook(tokenizer: Tokenizer, video: jax.Array, key: jax.Array, batch_size: int) -> None:
    """Sets the codebook in place to the k-means centres of the features of `video`, with counts as
    of a batch of `batch_size` clips.
    """
    features = tokenizer.encode(video)  # [n, T, H, W, E]
    codebook_size = tokenizer.quantizer.counts.size
    centres = cluster(features, codebook_size, key)
    counts = count_tokens(nearest_tokens(centres, features), codebook_size)
    tokenizer.quantizer.set_codebook(centres, counts * (batch_size / len(video)))


def cluster(features: jax.Array, number: int, key: jax.Array) -> jax.Array:
    """k-means centres [number, E] of features [..., E]."""
    flat = features.reshape(-1, features.shape[-1])  # [n, E]
    order_key, seed_key = jax.random.split(key)
    seeding = flat[jax.random.permutation(order_key, len(flat))[:SEEDING_FEATURES]]

    def move(_, centres: jax.Array) -> jax.Array:
        nearest = nearest_tokens(centres, flat)  # [n]
        counts = count_tokens(nearest, number)[:, None]  # [number, 1]
        sums = jax.ops.segment_sum(flat, nearest, number)
        return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), centres)

    return lax.fori_loop(0, ROUNDS, move, first_centres(seeding, number, seed_key))


def first_centres(features: jax.Array, number: int, key: jax.Array) -> jax.Array:
    """`number` rows of features [n, E], each drawn in proportion to its squared distance from those
    before.

    Arthur and Vassilvitskii 2007 (k-means++): rare patches far from all others get an embedding
    too. Where there are fewer different rows than centres, rows repeat.
    """

    def draw(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centres, distances = carry  # [number, E], [n] to the nearest centre so far
        chosen = jax.random.categorical(jax.random.fold_in(key, i), jnp.log(distances + 1e-12))
        centre = features[chosen]
        return centres.at[i].set(centre), jnp.minimum(
            distances, jnp.square(features - centre[None]).sum(-1)
        )

    start = (jnp.zeros((number, features.shape[1])), jnp.ones(len(features)) * 1e12)
    return lax.fori_loop(0, number, draw, start)[0]
