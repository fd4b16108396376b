"""Measures the formulations of the tokenizer's 3D convolution, forward and backward, at sizes of the demo.

    python -m benchmarks.convolutions

Prints, for each input size, kernel and formulation, the fastest of several runs, the arithmetic rate and the scratch memory.
`patches` (all kernel taps side by side, then one matrix product) is the alternative that the tokenizer does not use.
"""

import itertools
import time

import jax
import jax.numpy as jnp
from absl import app
from jax import lax

from mebt_jax.tokenizer import convolutions

SIZES = ((8, 4, 8, 8, 64), (8, 4, 8, 8, 128), (8, 8, 8, 8, 64), (8, 8, 8, 8, 128), (8, 8, 16, 16, 64))  # B, F, H, W, C
KERNELS = (((3, 3, 3), (1, 1, 1)), ((4, 4, 4), (2, 2, 2)))  # kernel size, strides
RUNS = 5


def convolve_patches(x: jax.Array, kernel: jax.Array, strides: convolutions.Size) -> jax.Array:
    """`convolutions.convolve` as one matrix product."""
    sizes = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:4], kernel.shape, strides)]
    patches = []
    for corner in itertools.product(*map(range, kernel.shape[:3])):
        ends = [c + s * (n - 1) + 1 for c, s, n in zip(corner, strides, sizes)]
        patches.append(lax.slice(x, (0, *corner, 0), (x.shape[0], *ends, x.shape[4]), (1, *strides, 1)))
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def transpose_with_zeros(x: jax.Array, kernel: jax.Array, strides: convolutions.Size) -> jax.Array:
    """`convolutions.convolve_transposed` as XLA's convolution of an input spread out with zeros."""
    return lax.conv_general_dilated(x, jnp.flip(kernel, (0, 1, 2)), (1, 1, 1), [(0, 0)] * 3, lhs_dilation=strides,
                                    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


FORMULATIONS = {
    "3d": convolutions.convolve_directly,
    "taps": convolutions.convolve_by_taps,
    "patches": convolve_patches,
}
TRANSPOSED_FORMULATIONS = {"zeros": transpose_with_zeros, "phases": convolutions.convolve_transposed}


def measure(name: str, function, x: jax.Array, kernel: jax.Array, strides: convolutions.Size, products: int) -> None:
    """Prints one line; `products` is the number of multiply-adds of the forward pass that are not by inserted zeros."""
    loss = jax.value_and_grad(lambda x, k: jnp.sum(jnp.square(function(x, k, strides))), (0, 1))
    compiled = jax.jit(loss).lower(x, kernel).compile()
    seconds = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(x, kernel))
        seconds.append(time.perf_counter() - start)
    best = min(seconds[1:])
    scratch = compiled.memory_analysis().temp_size_in_bytes / 2**20
    print(f"{name:20s} {1e3 * best:8.1f} ms {6e-9 * products / best:7.0f} GFLOP/s {scratch:8.0f} MiB", flush=True)


def main(argv: list[str]) -> None:
    del argv
    print(f"forward and backward on {jax.devices()[0].device_kind}, fastest of {RUNS}")
    for (batch, *size, channels), (kernel_size, strides) in itertools.product(SIZES, KERNELS):
        print(f"\nbatch {batch}, size {tuple(size)}, channels {channels}, kernel {kernel_size}, strides {strides}")
        x_key, kernel_key = jax.random.split(jax.random.key(0))
        x = jax.random.normal(x_key, (batch, *size, channels))
        kernel = jax.random.normal(kernel_key, (*kernel_size, channels, channels))
        positions = batch * size[0] * size[1] * size[2]
        taps = kernel_size[0] * kernel_size[1] * kernel_size[2]
        strided = strides[0] * strides[1] * strides[2]
        padded = convolutions.pad_same(x, kernel_size, strides)
        for name, function in FORMULATIONS.items():
            measure(name, function, padded, kernel, strides, positions // strided * taps * channels**2)
        if strided > 1:
            for name, function in TRANSPOSED_FORMULATIONS.items():
                measure(f"transposed, {name}", function, padded, kernel, strides, positions * taps * channels**2)


if __name__ == "__main__":
    app.run(main)
