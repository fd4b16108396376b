"""Measures the formulations of the tokenizer's 3D convolution, forward and backward.

    python -m benchmarks.convolutions                       # times on this machine
    python -m benchmarks.convolutions --topology=v5e:2x2    # counts of the TPU compiler, no TPU

Prints, for each input size, kernel and formulation, the fastest of several runs, the arithmetic
rate and the scratch memory; or, with a topology, the FLOPs, bytes and scratch memory on one chip in
bfloat16. The tokenizer uses "taps" on CPU and "3d" elsewhere. "taps" is a loop, and the TPU
compiler counts one turn of a loop: "taps, unpadded" is the same without a loop.
"""

import os
import sys

# Before JAX is imported, as in mebt_jax/aot/__main__.py.
if any(word.startswith("--topology") for word in sys.argv):
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-16",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_LOG_DIR="disabled",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        JAX_ENABLE_COMPILATION_CACHE="false",
    )

import itertools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import app, flags
from einops import rearrange
from jax import lax
from jax.experimental import topologies

from mebt_jax.nn import convolutions

TOPOLOGY = flags.DEFINE_string(
    "topology", "", "Compile for a chip of this TPU topology instead of running."
)
SIZES = ((8, 4, 8, 8, 128), (4, 16, 32, 32, 32), (1, 16, 64, 64, 64))  # B, F, H, W, C
KERNELS = (((3, 3, 3), (1, 1, 1)), ((4, 4, 4), (2, 2, 2)))  # kernel size, strides
RUNS = 2


def taps_without_padding(x: jax.Array, kernel: jax.Array, strides: convolutions.Size) -> jax.Array:
    """`convolutions.convolve_by_taps` without its additional column."""
    batch, taps, stride = x.shape[0], kernel.shape[0], strides[0]
    span = stride * ((x.shape[1] - taps) // stride) + 1
    parts = [
        lax.conv_general_dilated(
            rearrange(x[:, tap : tap + span : stride], "b f h w c -> (b f) h w c"),
            kernel[tap],
            strides[1:],
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for tap in range(taps)
    ]
    return rearrange(sum(parts), "(b f) h w c -> b f h w c", b=batch)


def convolve_folded(x: jax.Array, kernel: jax.Array, strides: convolutions.Size) -> jax.Array:
    """`convolutions.convolve` as one 2D convolution: the channels of an input frame are those of
    all frames under the kernel.
    """
    taps, stride = kernel.shape[0], strides[0]
    span = stride * ((x.shape[1] - taps) // stride) + 1
    frames = jnp.concatenate([x[:, tap : tap + span : stride] for tap in range(taps)], axis=-1)
    return convolutions.convolve_by_taps(
        frames, rearrange(kernel, "t h w i o -> 1 h w (t i) o"), (1, *strides[1:])
    )


def convolve_patches(x: jax.Array, kernel: jax.Array, strides: convolutions.Size) -> jax.Array:
    """`convolutions.convolve` as one matrix product."""
    sizes = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:4], kernel.shape, strides)]
    patches = []
    for corner in itertools.product(*map(range, kernel.shape[:3])):
        ends = [c + s * (n - 1) + 1 for c, s, n in zip(corner, strides, sizes)]
        patches.append(
            lax.slice(x, (0, *corner, 0), (x.shape[0], *ends, x.shape[4]), (1, *strides, 1))
        )
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


FORMULATIONS = {
    "3d": convolutions.convolve_directly,
    "taps": convolutions.convolve_by_taps,
    "taps, unpadded": taps_without_padding,
    "folded": convolve_folded,
    "patches": convolve_patches,
}


def measure(
    function: Callable[[jax.Array, jax.Array], jax.Array],
    shapes: list[tuple[int, ...]],
    products: int,
) -> str:
    """Figures of the forward and the backward pass; `products` is the number of multiply-adds of
    the forward pass, without those by inserted zeros.
    """
    loss = jax.jit(
        jax.value_and_grad(
            lambda x, k: jnp.sum(jnp.square(function(x, k).astype(jnp.float32))), (0, 1)
        )
    )
    if TOPOLOGY.value:
        device = topologies.get_topology_desc(TOPOLOGY.value, platform="tpu").devices[0]
        sharding = jax.sharding.SingleDeviceSharding(device)
        compiled = loss.lower(
            *(jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in shapes)
        ).compile()
        count = compiled.cost_analysis()
        figures = (
            f"{1e-9 * count['flops']:8.1f} GFLOP {1e-6 * count['bytes accessed']:8.0f} MB moved"
        )
    else:
        x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
        compiled = loss.lower(x, kernel).compile()
        seconds = []
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            jax.block_until_ready(compiled(x, kernel))
            seconds.append(time.perf_counter() - start)
        best = min(seconds[1:])
        figures = f"{1e3 * best:8.1f} ms {6e-9 * products / best:7.0f} GFLOP/s"
    return f"{figures} {compiled.memory_analysis().temp_size_in_bytes / 2**20:8.0f} MiB scratch"


def main(argv: list[str]) -> None:
    del argv
    print(
        "forward and backward "
        f"{'for ' + TOPOLOGY.value if TOPOLOGY.value else 'on ' + jax.devices()[0].device_kind}"
    )
    for (batch, *size, channels), (kernel_size, strides) in itertools.product(SIZES, KERNELS):
        positions = batch * size[0] * size[1] * size[2]
        taps = kernel_size[0] * kernel_size[1] * kernel_size[2]
        strided = strides[0] * strides[1] * strides[2]
        print(
            f"\nbatch {batch}, size {tuple(size)}, channels {channels}, kernel {kernel_size}, "
            f"strides {strides}: "
            f"{6e-9 * (positions // strided) * taps * channels**2:.1f} GFLOP",
            flush=True,
        )
        padded = [n + k - s for n, k, s in zip(size, kernel_size, strides)]
        shapes = [(batch, *padded, channels), (*kernel_size, channels, channels)]
        for name, function in FORMULATIONS.items():
            print(
                f"{name:20s}",
                measure(
                    lambda x, k: function(x, k, strides),
                    shapes,
                    positions // strided * taps * channels**2,
                ),
                flush=True,
            )
        if strided > 1:
            print(
                f"{'transposed':20s}",
                measure(
                    lambda x, k: convolutions.convolve_transposed(x, k, strides),
                    shapes,
                    positions * taps * channels**2,
                ),
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
