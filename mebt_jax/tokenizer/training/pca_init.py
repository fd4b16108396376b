"""Where tokenizer training starts: codes among the features of real clips, and folded tokenizers
already fitted to them.

A folded tokenizer (`config.tokenizer.patch`) has linear shortcuts from the pixels of a patch to its
features and back. They start at the principal components of real patches and the codes at the
centres that k-means finds among their features: what thousands of steps would otherwise be spent on
is solved in seconds. Where the codes are a fixed grid the components are scaled to it, and the way
back is the best linear map of the codes. The official network starts its codes at random features.
"""

import jax
import jax.numpy as jnp
from jax import lax

from mebt_jax.tokenizer import quantizers
from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.quantizers import Codebook

FEATURES_PER_CODE, MOST_FEATURES = (
    128,
    196_608,
)  # tokens to fit to; the clips that hold them are `clips_needed`
SEEDS = 16_384  # of these, how many the first centres are drawn from
ROUNDS = 20  # of k-means


def clips_needed(codes: int, tokens: int, batch_size: int, *, folded: bool) -> int:
    """Clips to fit this many codes to where each has this many tokens: a multiple of the batch
    size, for the mesh to share.

    A tokenizer that is not folded draws its codes from one batch.
    """
    if not folded:
        return batch_size
    return batch_size * max(
        1, round(min(FEATURES_PER_CODE * codes, MOST_FEATURES) / (tokens * batch_size))
    )


def fit(
    tokenizer: Tokenizer, codebook: Codebook, video: jax.Array, key: jax.Array, *, batch_size: int
) -> tuple[Tokenizer, Codebook]:
    """Start of the training on clips like these.

    Args:
        tokenizer: just made.
        codebook: gives the number of codes.
        video: [n, F, H, W, 3] in [-0.5, 0.5].
        key: for the choice of first centres.
        batch_size: clips per training step, which the running counts of the codebook refer to.
    """
    folded = tokenizer.patch != (1, 1, 1)
    if folded:
        fit_shortcuts(tokenizer, video)
    if codebook.kind in ("fsq", "lfq"):
        if folded:
            fit_grid(tokenizer, codebook, video)
        return tokenizer, codebook
    if folded:
        features = tokenizer.encode(video)  # [n, T, H, W, E]
        codebook = cluster(features, codebook, key)
        codes = quantizers.nearest_codes(codebook, features)
        counts = quantizers.count_codes(codes, codebook.counts.size) * (batch_size / len(video))
        sums = counts[:, None] * codebook.embeddings if codebook.kind == "ema" else None
        codebook = codebook.replace(counts=counts, sums=sums)
    else:
        codebook = quantizers.init_from_features(
            codebook, tokenizer.encode(video[:batch_size]), key
        )
    if codebook.kind == "gradient":
        tokenizer.codes[...] = codebook.embeddings
        codebook = codebook.replace(embeddings=None)
    return tokenizer, codebook


def fit_shortcuts(tokenizer: Tokenizer, video: jax.Array) -> None:
    """Sets the shortcuts in place so that they encode and decode `video` [n, F, H, W, 3] with the
    least squared error.
    """
    patches = tokenizer.whole_patches(video)  # [n, T, H, W, P]
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


def fit_grid(tokenizer: Tokenizer, codebook: Codebook, video: jax.Array) -> None:
    """Scales the fitted shortcut in place to features of variance 1 over `video` [n, F, H, W, 3],
    which spread over the values of a fixed grid, and sets the one back to the least squared error
    from the codes.
    """
    scale = 1 / jnp.maximum(tokenizer.encode(video).std(axis=(0, 1, 2, 3)), 1e-6)  # [E]
    tokenizer.shortcut_in.kernel[...] = tokenizer.shortcut_in.kernel[...] * scale[None]
    tokenizer.shortcut_in.bias[...] = tokenizer.shortcut_in.bias[...] * scale
    codes = quantizers.nearest_codes(codebook, tokenizer.encode(video))  # [n, T, H, W]
    chosen = quantizers.lookup(codebook, codes.reshape(-1))  # [n T H W, E]
    chosen = jnp.pad(chosen, ((0, 0), (0, 1)), constant_values=1.0)  # the last is the bias
    patches = tokenizer.whole_patches(video).reshape(len(chosen), -1)  # [n T H W, P]
    products = [
        jnp.matmul(chosen.T, x, precision=lax.Precision.HIGHEST) / len(chosen)
        for x in (chosen, patches)
    ]
    solution = jnp.linalg.solve(
        products[0] + 1e-6 * jnp.eye(chosen.shape[1]), products[1]
    )  # [E + 1, P]
    tokenizer.shortcut_out.kernel[...], tokenizer.shortcut_out.bias[...] = (
        solution[:-1],
        solution[-1],
    )


def cluster(features: jax.Array, codebook: Codebook, key: jax.Array) -> Codebook:
    """Codebook whose embeddings are the k-means centres of features [..., E]; its counts and sums
    are not set.
    """
    flat = features.reshape(-1, features.shape[-1])  # [n, E]
    order_key, seed_key = jax.random.split(key)
    some = flat[jax.random.permutation(order_key, len(flat))[:SEEDS]]
    centres = first_centres(some, codebook.counts.size, seed_key)

    def move(_, centres: jax.Array) -> jax.Array:
        codes = quantizers.nearest_codes(codebook.replace(embeddings=centres), flat)  # [n]
        counts = quantizers.count_codes(codes, len(centres))[:, None]  # [V, 1]
        sums = jax.ops.segment_sum(flat, codes, len(centres))
        return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), centres)

    return codebook.replace(embeddings=lax.fori_loop(0, ROUNDS, move, centres))


def first_centres(features: jax.Array, number: int, key: jax.Array) -> jax.Array:
    """`number` rows of features [n, E], each drawn in proportion to its squared distance from those
    before.

    Arthur and Vassilvitskii 2007 (k-means++): rare patches far from all others get a code too.
    Where there are fewer different rows than centres, rows repeat.
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
