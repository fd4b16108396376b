"""The paper on one page: MeBT (Yoo et al., CVPR 2023, arXiv:2303.11251), from pixels to new clips.

`python examples/mebt_on_one_page.py` trains on moving shapes for a few minutes on two CPU cores and
leaves `mebt_on_one_page.png`: rows of real clips, their reconstructions, and generated clips.

Shapes: B clips of F frames; a grid of T x H x W = N tokens, of which C are contexts (known) and M
are targets (masked, to be predicted); L latents; width D in K heads; V codes of width E. In
attention, Q tokens query and S tokens give keys and values. A token stands for P pixel values.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image
from tqdm import trange

from mebt_jax.data.worlds.moving_shapes import MovingShapes


@dataclasses.dataclass(frozen=True)
class Config:
    grid: tuple[int, int, int] = (4, 4, 4)  # T, H, W
    patch: tuple[int, int, int] = (4, 8, 8)  # frames, rows and columns that one token stands for
    codes: int = 512  # V
    code_width: int = 64  # E
    layers: tuple[str, ...] = ("encode", "latent", "encode", "decode", "update", "decode")
    width: int = 128  # D
    heads: int = 8  # K
    latents: int = 32  # L
    residual: str = "query"  # what attention is added to: "query" (pre-norm) or "normed_query"
    rotary: bool = True  # rotary positions beside the learned absolute ones
    targets: int = 32  # M in training; of more masked tokens only so many are predicted
    alpha: float = 60.0  # of eq. 4: steps after which the mean interval grows by one
    beta: float = 1.0  # of eq. 4: standard deviation of the interval


# ---- Tokenizer (section 2) ----
def to_patches(video: np.ndarray, config: Config) -> np.ndarray:
    """[B, F, rows, columns, 3] -> the pixel values of each token, [B, N, P]."""
    (T, H, W), (f, r, c) = config.grid, config.patch
    x = video.reshape(-1, T, f, H, r, W, c, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(-1, T * H * W, f * r * c * 3)


class Tokenizer(nnx.Module):
    """Vector quantization (section 2). Its 3D convolutions have strides equal to their kernels, so
    they are linear maps of patches, and equal patches get equal codes."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        P, E = 3 * int(np.prod(config.patch)), config.code_width
        self.encoder, self.decoder = nnx.Linear(P, E, rngs=rngs), nnx.Linear(E, P, rngs=rngs)
        self.codebook = nnx.Param(jnp.zeros((config.codes, E)))  # [V, E]

    def encode(self, patches: jax.Array) -> tuple[jax.Array, jax.Array]:
        """uint8 [B, N, P] -> h = E(x), [B, N, E], and the codes nearest to h, int32 [B, N]."""
        h, half_norms = self.encoder(patches / 255.0), (self.codebook[...] ** 2).sum(axis=1) / 2
        return h, (h @ self.codebook[...].T - half_norms[None, None]).argmax(axis=-1)

    def decode(self, codes: jax.Array) -> jax.Array:
        """int32 [B, N] -> uint8 [B, N, P]."""
        return jnp.round(255 * self.decoder(self.codebook[...][codes]).clip(0, 1)).astype("uint8")


def tokenizer_loss(tokenizer: Tokenizer, patches: jax.Array, *_) -> jax.Array:
    """Eq. 1 for patches uint8 [B, N, P]: reconstruction, codebook and commitment (beta = 1/4)."""
    sg = jax.lax.stop_gradient
    h, codes = tokenizer.encode(patches)
    y = tokenizer.codebook[...][codes]  # [B, N, E]
    x = tokenizer.decoder(h + sg(y - h))  # [B, N, P]; straight-through: the gradient goes to h
    errors = patches / 255.0 - x, sg(h) - y, (sg(y) - h) / 2
    return sum((error**2).mean() for error in errors)


def start_tokenizer(tokenizer: Tokenizer, patches: np.ndarray) -> None:
    """Not in the paper, but it replaces thousands of steps: starts the maps at principal components
    of patches uint8 [n, P], and each code at the feature farthest from the codes before it."""
    codebook, x = np.array(tokenizer.codebook[...]), patches / np.float32(255)
    mean = x.mean(axis=0)  # [P]
    components = np.linalg.eigh((x - mean).T @ (x - mean))[1][:, : -codebook.shape[1] - 1 : -1]
    h, distance = (x - mean) @ components, np.full(len(x), np.inf)  # [n, E], [n]
    for v in range(len(codebook)):
        codebook[v] = h[distance.argmax()]
        distance = np.minimum(distance, ((h - codebook[v]) ** 2).sum(axis=1))
    tokenizer.encoder.kernel[...], tokenizer.encoder.bias[...] = components, -mean @ components
    tokenizer.decoder.kernel[...], tokenizer.decoder.bias[...] = components.T, mean
    tokenizer.codebook[...] = codebook


# ---- Transformer (section 3) ----
LAYERS = {  # the tokens that query and are updated, the tokens that give keys and values
    "encode": ("latents", ["contexts"]),  # encoder, first layer (section 3.1, figure 2)
    "latent": ("latents", ["latents"]),  # encoder, second layer
    "update": ("latents", ["latents", "targets"]),  # decoder, first layer (section 3.2, figure 3)
    "decode": ("targets", ["latents"]),  # decoder, second layer
}
linear = functools.partial(nnx.Linear, kernel_init=nnx.initializers.normal(0.02))
layer_norm = functools.partial(nnx.LayerNorm, epsilon=1e-5, use_fast_variance=False)


class Block(nnx.Module):
    """A layer of figure 2 or 3: pre-norm attention and MLP; one norm serves queries and keys."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        D, K, self.config = config.width, config.heads, config
        self.attention_norm, self.mlp_norm = layer_norm(D, rngs=rngs), layer_norm(D, rngs=rngs)
        self.query, self.key = linear(D, D, rngs=rngs), linear(D, D, rngs=rngs)
        self.value, self.output = linear(D, D, rngs=rngs), linear(D, D, rngs=rngs)
        self.mlp_in, self.mlp_out = linear(D, 4 * D, rngs=rngs), linear(4 * D, D, rngs=rngs)
        if config.rotary:  # not in the paper: at first each head attends to one place nearby
            places = jax.random.uniform(rngs.params(), (1, K, 3), minval=-1.3, maxval=1.3)
            bias = jnp.tile(jnp.repeat(jnp.array([3.0, 0.0]), D // K // 2), (1, K, 1, 1))
            self.key.bias[...] = bias.ravel()
            self.query.bias[...] = rotate(bias, rotary_angles(places, config)).ravel()
            value = nnx.initializers.orthogonal()(rngs.params(), (D, D))
            self.value.kernel[...], self.output.kernel[...] = value, value.T

    def __call__(self, x, x_angles, kv, kv_valid, kv_angles):
        """x [B, Q, D] attends to kv [B, S, D] where kv_valid [B, S]; angles [B, Q or S, D/2K]."""
        (B, Q, D), K = x.shape, self.config.heads
        normed, kv = self.attention_norm(x), self.attention_norm(kv)
        query = self.query(normed).reshape(B, Q, K, D // K)
        key, value = (m(kv).reshape(B, -1, K, D // K) for m in (self.key, self.value))
        if self.config.rotary:
            query, key = rotate(query, x_angles), rotate(key, kv_angles)
        scores = jnp.einsum("bqkd,bskd->bkqs", query, key) / np.sqrt(D // K)  # [B, K, Q, S]
        valid = kv_valid[:, None, None, :]
        # Without the factor an empty context would give the mean of its padding instead of zero.
        weights = jax.nn.softmax(jnp.where(valid, scores, -1e30)) * valid
        attended = jnp.einsum("bkqs,bskd->bqkd", weights, value).reshape(B, Q, D)
        x = (x if self.config.residual == "query" else normed) + self.output(attended)
        return x + self.mlp_out(jax.nn.gelu(self.mlp_in(self.mlp_norm(x)), approximate=False))


class MeBT(nnx.Module):
    """p(y_M | y_C, z_M) of eq. 3: predicts targets from contexts through latents (figure 1). In
    every layer queries or keys/values are latents, so the cost is linear in C and M."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        V, L, D, self.config = config.codes, config.latents, config.width, config
        self.token_embedding = nnx.Param(jax.random.normal(rngs.params(), (V, D)))
        self.position_embedding = nnx.Param(jnp.zeros((np.prod(config.grid), D)))  # [N, D]
        self.mask_embedding = nnx.Param(jax.random.normal(rngs.params(), (D,)))
        self.latents = nnx.Param(jax.random.normal(rngs.params(), (L, D)))
        self.blocks = nnx.List([Block(config, rngs) for _ in config.layers])
        self.final_norm = layer_norm(D, rngs=rngs)
        self.head = linear(D, V, use_bias=False, rngs=rngs)

    def __call__(self, codes, context_positions, context_valid, target_positions, target_valid):
        """Contexts [B, C] and targets [B, M] at positions 0 to N - 1 -> logits [B, M, V] of the
        targets. Tokens that are not valid are padding."""
        config, B, position = self.config, len(codes), self.position_embedding[...]
        latents_valid = jnp.ones((B, config.latents), bool)
        latents = jnp.tile(self.latents[...], (B, 1, 1))
        contexts = self.token_embedding[...][codes] + position[context_positions]
        targets = self.mask_embedding[...][None, None] + position[target_positions]
        # Latents are placed evenly by a Halton sequence: the digits of i, mirrored at the point.
        i, k = np.arange(config.latents)[:, None], np.arange(1, 17)[None]
        halton = [(i // base ** (k - 1) % base / float(base) ** k).sum(1) for base in (2, 3, 5)]
        latent_angles = rotary_angles(np.stack(halton, 1) * np.array([config.grid]), config)
        token_angles = rotary_angles(np.indices(config.grid).reshape(3, -1).T + 0.5, config)
        streams = {  # z_L, y_C, z_M [B, L or C or M, D]; valid; angles of places [B, ., D/2K]
            "latents": (latents, latents_valid, jnp.tile(latent_angles, (B, 1, 1))),
            "contexts": (contexts, context_valid, token_angles[context_positions]),
            "targets": (targets, target_valid, token_angles[target_positions]),
        }
        for block, kind in zip(self.blocks, config.layers):
            queries, names = LAYERS[kind]
            x, valid, angles = streams[queries]
            kv = (jnp.concatenate(arrays, 1) for arrays in zip(*(streams[name] for name in names)))
            streams[queries] = block(x, angles, *kv), valid, angles
        return self.head(self.final_norm(streams["targets"][0]))


def rotary_angles(places: jax.Array, config: Config) -> jax.Array:
    """RoPE (not in the paper): places (t, h, w) in cells of the grid, [..., 3] -> [..., D/2K]."""
    pairs = config.width // config.heads // 2
    frequencies = np.zeros((3, pairs), np.float32)  # radians per cell; a third of the pairs each
    for row, start, size in zip(frequencies, range(0, pairs, max(pairs // 3, 1)), config.grid):
        row[start : start + pairs // 3] = 2 * np.pi / np.geomspace(2, 4 * size, pairs // 3)
    return jnp.asarray(places @ frequencies, jnp.float32)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns the pairs (i, i + D/2K) of heads [B, S, K, D/K] by angles [B, S, D/2K]."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


# ---- Training (section 3.3) ----
def draw_masks(key, step, batch: int, config: Config) -> tuple[jax.Array, ...]:
    """Masks ceil(r v H W) random tokens of an interval (section 3.3): whether each token is a
    context, bool [B, N]; positions and valid of the targets, [B, M]."""
    (T, H, W), keys = config.grid, jax.random.split(key, 3)
    mean = 1 + step / config.alpha + config.beta * jax.random.normal(keys[0], (batch, 1))
    v = jnp.ceil(mean).clip(1, T)  # eq. 4, intervals [B, 1]; the paper has one for a batch
    u, r = jax.random.uniform(keys[1], (2, batch, 1))
    frame = jnp.arange(T * H * W)[None] // (H * W) - jnp.floor(u * (T - v + 1))  # [B, N]
    inside = (frame >= 0) & (frame < v)  # v consecutive latent frames from a random one on
    noise = jnp.where(inside, jax.random.uniform(keys[2], inside.shape), 1.0)
    order = noise.argsort(axis=1)  # [B, N]; random, and tokens outside the interval come last
    masked = jnp.ceil((1 - r) * v * H * W)  # [B, 1], at least 1
    context = inside & (order.argsort(axis=1) >= masked)
    return context, order[:, : config.targets], jnp.arange(config.targets)[None] < masked


def mebt_loss(model: MeBT, codes: jax.Array, key: jax.Array, step: jax.Array) -> jax.Array:
    """Eq. 3 for codes [B, N], as a mean over the targets."""
    context, targets, valid = draw_masks(key, step, len(codes), model.config)
    positions = jnp.tile(jnp.arange(codes.shape[1]), (len(codes), 1))  # [B, N]
    logits = model(codes, positions, context, targets, valid)  # [B, M, V]
    right = jnp.take_along_axis(codes, targets, axis=1)  # [B, M]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, right)  # [B, M]
    return (losses * valid).sum() / valid.sum()


def train(model, loss, optimizer, data: np.ndarray, steps: int, batch: int = 32) -> list[float]:
    """Minimises loss(model, batch of data, key, step) in place; returns its values."""

    @nnx.jit
    def train_step(model, optimizer, *inputs):
        value, gradients = nnx.value_and_grad(loss)(model, *inputs)
        optimizer.update(model, gradients)
        return value

    optimizer, losses = nnx.Optimizer(model, optimizer, wrt=nnx.Param), []
    for step in (bar := trange(steps)):
        inputs = data[np.random.default_rng(step).integers(len(data), size=batch)]
        inputs = inputs, jax.random.key(step), float(step)
        losses.append(float(train_step(model, optimizer, *inputs)))
        bar.set_description(f"{loss.__name__} {np.mean(losses[-50:]):.4f}")
    return losses


# ---- Decoding (section 3.3, "Inference") ----
@nnx.jit
def sample(model: MeBT, codes, known, key, temperature) -> tuple[jax.Array, jax.Array]:
    """Draws the tokens that are not known by eq. 3: codes and log-probabilities, [B, N]."""
    positions = jnp.tile(jnp.arange(codes.shape[1]), (len(codes), 1))
    logits = model(codes, positions, known, positions, ~known) / temperature  # [B, N, V]
    codes = jnp.where(known, codes, jax.random.categorical(key, logits))
    return codes, jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], 2)[..., 0]


def draft(model: MeBT, codes, known, key, S: int = 64, noise: float = 100.0) -> jax.Array:
    """Fills the unknown tokens of codes, known [B, N] in S steps, the most probable samples first:
    after step s, the share gamma(s/S) = 1 - s/S of them is left unknown."""
    unknown = (~known).sum(axis=1, keepdims=True)  # [B, 1]
    for s in trange(1, S + 1, desc="draft"):
        keys = jax.random.split(jax.random.fold_in(key, s))
        samples, logp = sample(model, codes, known, keys[0], 1.0)
        # Much noise, because the most probable tokens would be empty background everywhere.
        score = jnp.where(known, jnp.inf, logp + noise * jax.random.gumbel(keys[1], logp.shape))
        rank = (-score).argsort(axis=1).argsort(axis=1)  # [B, N]
        known = rank < codes.shape[1] - jnp.ceil((1 - s / S) * unknown)
        codes = jnp.where(known, samples, 0)
    return codes


def revise(model: MeBT, codes, given, key, rounds: int = 12, R: int = 32) -> jax.Array:
    """Draws each of R even random parts of the tokens that are not given from all other tokens."""
    parts = jnp.tile(jnp.arange(codes.shape[1]) % R, (len(codes), 1))
    for i in trange(rounds * R, desc="revise"):
        keys = jax.random.split(jax.random.fold_in(key, i))
        if i % R == 0:
            parts = jax.random.permutation(keys[0], parts, axis=1, independent=True)  # [B, N]
        codes, _ = sample(model, codes, (parts != i % R) | given, keys[1], 0.2)
    return codes


def main(clips: int = 8000, steps: int = 1000, path: str = "mebt_on_one_page.png") -> None:
    config, source = Config(), MovingShapes(clips, frames=16, resolution=32, seed=0)
    video = np.stack([source[i]["video"] for i in trange(clips, desc="clips")])
    real, patches = np.split(to_patches(video, config), [4])  # [4, N, P], [clips - 4, N, P]
    tokenizer, model = Tokenizer(config, nnx.Rngs(0)), MeBT(config, nnx.Rngs(1))
    start_tokenizer(tokenizer, patches[:500].reshape(-1, patches.shape[-1]))
    train(tokenizer, tokenizer_loss, optax.adam(3e-4), patches, 200)
    encode = nnx.jit(lambda tokenizer, patches: tokenizer.encode(patches)[1])
    codes = np.concatenate([encode(tokenizer, x) for x in np.array_split(patches, 50)])
    rate = optax.warmup_cosine_decay_schedule(0, 0.02, steps // 10, steps)
    # Muon, not the paper's AdamW: it needs a fraction of the steps.
    muon = optax.contrib.muon(rate, adam_learning_rate=lambda step: 0.1 * rate(step))
    train(model, mebt_loss, muon, codes, steps)
    empty, key = jnp.zeros((8, codes.shape[1]), int), jax.random.key(0)
    generated = revise(model, draft(model, empty, empty > 0, key), empty > 0, key)
    rows = real, tokenizer.decode(encode(tokenizer, real)), tokenizer.decode(generated)
    print(f"{path}: 4 real clips, 4 reconstructions, 8 generated clips")
    x = np.concatenate(rows).reshape(-1, *config.grid, *config.patch, 3)
    x = x.transpose(0, 2, 5, 1, 4, 3, 6, 7).reshape(-1, 32, 16, 32, 3)  # [., rows, F, columns, 3]
    x = np.pad(x, ((0, 0), (0, 2), (0, 0), (0, 2), (0, 0)), constant_values=255)
    Image.fromarray(x.reshape(-1, 16 * 34, 3).repeat(2, 0).repeat(2, 1)).save(path)


if __name__ == "__main__":
    main()
