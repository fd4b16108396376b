"""The frozen first stage, compiled on a mesh: clips to the latents of the prior, and back."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mebt_jax.config import Config
from mebt_jax.data import clips
from mebt_jax.runtime import host_arrays
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.live_memory import peak_bytes


class LatentSpace(Protocol):
    """What the prior's stage, the sampler and the evaluation know of the first stage.

    Attributes:
        mesh: the devices.
        content_hash: names the weights, whatever folder they came from.
        codebook: embeddings [V, E] of the tokens, or None where latents are continuous.
    """

    mesh: Mesh
    content_hash: str
    codebook: jax.Array | None

    def encode(self, rows: Mapping[str, np.ndarray]) -> jax.Array:
        """This process's rows of a batch, clips or stored latents -> latents [B, T, H, W, ...]."""

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents [B, T, H, W, ...] -> uint8 clips [B, F, H, W, 3]."""

    def bytes_per_clip(self, config: Config) -> int:
        """Estimated device memory per clip of `decode` beside the weights."""


class TokenSpace:
    """Latents are tokens int32 [B, T, H, W] of a VQ tokenizer."""

    def __init__(
        self, graphdef: nnx.GraphDef, params: nnx.State, content_hash: str, mesh: Mesh
    ) -> None:
        """`graphdef` and `params` are a `Tokenizer`'s, quantizer included."""
        self.mesh, self.content_hash, self.params = mesh, content_hash, params
        self.graphdef = graphdef
        self._encode, self._decode = (compiled(mesh, f) for f in (encode_video, decode_tokens))

    @property
    def codebook(self) -> jax.Array:
        return self.params["quantizer"]["codebook"][...]

    def encode(self, rows: Mapping[str, np.ndarray]) -> jax.Array:
        """See `LatentSpace`; rows have "tokens", or else "video"."""
        if "tokens" in rows:
            return host_arrays.put_batch(self.mesh, {"tokens": rows["tokens"]})["tokens"]
        video = host_arrays.put_batch(self.mesh, {"video": rows["video"]})["video"]
        return self._encode(self.graphdef, self.params, video)

    def encode_on_host(self, video: np.ndarray) -> np.ndarray:
        """uint8 clips [B, F, H, W, 3] that every process holds whole -> their tokens, the same on
        every process.
        """
        rows = host_arrays.host_rows(self.mesh, len(video))
        return host_arrays.on_host(self.encode({"video": video[rows]}), self.mesh)

    def decode(self, latents: jax.Array) -> jax.Array:
        """See `LatentSpace`."""
        return self._decode(self.graphdef, self.params, latents)

    def bytes_per_clip(self, config: Config) -> int:
        """See `LatentSpace`."""
        tokens = jax.ShapeDtypeStruct((1, *config.grid), jnp.int32)
        decode = functools.partial(decode_tokens, self.graphdef)
        return peak_bytes(jax.make_jaxpr(decode)(self.params, tokens).jaxpr)


def encode_video(graphdef: nnx.GraphDef, params: nnx.State, video: jax.Array) -> jax.Array:
    """uint8 clips [B, F, H, W, 3] -> tokens int32 [B, T, H, W]."""
    return nnx.merge(graphdef, params).tokenize(clips.to_float(video))


def decode_tokens(graphdef: nnx.GraphDef, params: nnx.State, tokens: jax.Array) -> jax.Array:
    """Tokens [B, T, H, W] -> uint8 clips [B, F, H, W, 3]."""
    return clips.to_uint8(nnx.merge(graphdef, params).decode_tokens(tokens))


@functools.cache
def compiled(mesh: Mesh, function: Callable[..., jax.Array]) -> Any:
    """`encode_video` or `decode_tokens` compiled for the mesh, split over clips."""
    return mesh_lib.jit(
        mesh, function, static_argnums=0, out_shardings=mesh_lib.batch_sharding(mesh)
    )
