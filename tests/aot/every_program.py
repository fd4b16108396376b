"""Runs every stage of a small run on CPU devices, records all programs that it compiles, and
compiles each of them again for TPUs.

    python tests/aot/every_program.py --workdir=DIR [--slices=2]

Every program goes through `runtime.mesh.jit`, so none is left out. The sizes let attention take the
kernel of TPUs. Prints a line for each program; the exit status is 1 if one does not compile.
"""

import os

# Before JAX is imported: see mebt_jax/aot/__main__.py.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_LOG_DIR="disabled",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    XLA_FLAGS="--xla_force_host_platform_device_count=8",
)

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mebt_jax.aot import chips
from mebt_jax.aot.roofline import EFFORT_OPTIONS
from mebt_jax.config import Config, from_config_dict
from mebt_jax.interop import weight_folders
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.runtime.compilation import low_memory_compiler_options
from mebt_jax.stages import data, evaluate, prior, sample, tokenizer
from tests.tiny_config import tiny_config

TOPOLOGY = "v5e:2x2"
MESHES = {1: {"data": 2, "tensor": 2}, 2: {"data": 2, "fsdp": 2, "tensor": 2}}  # by slices
SIZES = {
    "data__frames": 16,
    "data__resolution": 32,  # 4 x 8 x 8 tokens
    "data__train_clips": 8,
    "data__validation_clips": 8,
    "tokenizer__training__steps": 3,
    "tokenizer__perceptual_weight": 1.0,
    "tokenizer__adversarial__frame_weight": 1.0,
    "tokenizer__adversarial__video_weight": 1.0,
    "tokenizer__adversarial__channels": 4,
    "tokenizer__adversarial__layers": 1,
    "tokenizer__adversarial__start": 2,
    "tokenizer__adversarial__warmup": 1,
    "backbone__layers": ("encode", "latent", "update", "decode"),
    "backbone__width": 128,
    "backbone__num_latents": 128,
    "backbone__dtype": "bfloat16",
    "backbone__remat": "save_query_projections",
    "method__bucket_steps": 2,
    "prior__training__steps": 3,
    "decoding__draft_steps": 2,
    "decoding__bootstrap_steps": 1,
    "decoding__remask_steps": 1,
    "decoding__remask_at": 0.9,
    "evaluate__window": 12,
    "evaluate__window_every": 2,
}
NETWORKS = {"i3d": {}, "c3d": {"width": 4, "hidden": 8}, "lpips": {}}


# ---- recording -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A program with the arguments of one call; arrays are abstract."""

    stage: str
    function: Callable[..., Any]
    jit_arguments: dict[str, Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def name(self) -> str:
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        return function.__qualname__.replace(".<locals>", "")


class Recorder:
    """In place of `runtime.mesh.jit`: compiles and runs as that does, and records."""

    def __init__(self) -> None:
        self.stage = ""
        self.recorded: dict[Any, Recorded] = {}
        self._jit = mesh_lib.jit

    def jit(self, mesh: Mesh | None, function: Callable[..., Any], **jit_arguments: Any) -> Any:
        return Program(self, function, jit_arguments, self._jit(mesh, function, **jit_arguments))


class Program:
    def __init__(
        self, recorder: Recorder, function: Any, jit_arguments: dict[str, Any], jitted: Any
    ) -> None:
        self._recorder, self._function = recorder, function
        self._jit_arguments, self._jitted = jit_arguments, jitted

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        call = jax.tree.map(abstract, (arguments, keywords))
        leaves, structure = jax.tree.flatten(call)
        # Measures of several kinds of clips may have the same function.
        key = (id(self._function), structure, *map(str, leaves))
        if key not in self._recorder.recorded:
            stage = self._recorder.stage
            recorded = Recorded(stage, self._function, self._jit_arguments, *call)
            self._recorder.recorded[key] = recorded
        return self._jitted(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jitted, name)


def abstract(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        sharding = leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    if isinstance(leaf, np.ndarray | np.generic):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return leaf


def record(workdir: Path, mesh: dict[str, int]) -> tuple[Recorder, Config]:
    """Runs all stages, with every kind of program that they have."""
    mesh_lib.jit = (recorder := Recorder()).jit
    weights = {name: make_network(workdir / "weights", name) for name in NETWORKS}
    axes = {f"mesh__{axis}": size for axis, size in mesh.items()}
    settings = SIZES | axes | {"tokenizer__lpips": weights["lpips"]}

    def config_with(**overrides: Any) -> Config:
        return from_config_dict(tiny_config(**settings, **overrides))

    def run(stage: Any, folder: Path, **overrides: Any) -> None:
        recorder.stage = stage.STAGE
        print(f"running {stage.STAGE}", flush=True)
        stage.run(config_with(**overrides), folder)

    config = config_with()
    workdir_lib.claim(config, workdir)
    for stage in (data, tokenizer, evaluate, prior, sample):  # without a prior, of the tokenizer
        run(stage, workdir)
    networks = {f"evaluate__{name}": path for name, path in weights.items()}
    run(evaluate, workdir)
    run(evaluate, workdir, evaluate__protocol="i3d", **networks)
    longer = workdir / "longer"  # the same models draw long videos, in another order
    longer.mkdir()
    for name in ("data", "tokenizer", "prior"):
        (longer / name).symlink_to(workdir / name)
    run(
        sample,
        longer,
        sample__task="extend",
        sample__frames=24,
        decoding__order="halton",
    )
    return recorder, config


def make_network(folder: Path, name: str) -> str:
    """A folder with random weights of a network."""
    sizes = NETWORKS[name]
    network = weight_folders.NETWORKS[name](**sizes, rngs=nnx.Rngs(0))
    weight_folders.save_network(folder / name, name, jax.device_get(nnx.state(network)), sizes)
    return str(folder / name)


# ---- compilation ---------------------------------------------------------------------------------


def compile_for(mesh: Mesh, recorded: Recorded) -> bool:
    """Compiles a program for a mesh of TPUs; returns whether it has their attention kernel."""

    def move(x: Any) -> Any:
        """A leaf of the mesh of CPUs, on that of TPUs."""
        if isinstance(x, NamedSharding):
            return NamedSharding(mesh, x.spec)
        if isinstance(x, jax.ShapeDtypeStruct) and x.sharding is not None:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=move(x.sharding))
        if isinstance(x, Mesh):
            return mesh
        if isinstance(x, functools.partial):
            moved = {name: move(value) for name, value in x.keywords.items()}
            return functools.partial(x.func, *map(move, x.args), **moved)
        return x

    jit_arguments = jax.tree.map(move, recorded.jit_arguments)
    if jit_arguments.get("compiler_options") == low_memory_compiler_options("cpu"):
        jit_arguments["compiler_options"] = low_memory_compiler_options("tpu")
    program = mesh_lib.jit(mesh, move(recorded.function), **jit_arguments)
    arguments, keywords = jax.tree.map(move, (recorded.arguments, recorded.keywords))
    lowered = program.trace(*arguments, **keywords).lower(lowering_platforms=("tpu",))
    lowered.compile(dict.fromkeys(EFFORT_OPTIONS, -1.0))
    return "tpu_custom_call" in lowered.as_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=1, choices=MESHES)
    options = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)
    jit = mesh_lib.jit
    recorder, config = record(options.workdir, MESHES[options.slices])
    mesh_lib.jit = jit
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = mesh_lib.make_mesh(config.mesh, chips.devices(TOPOLOGY, options.slices))
    failed = 0
    for program in recorder.recorded.values():
        start = time.monotonic()
        try:
            kernel = ", with the attention kernel" * compile_for(mesh, program)
            outcome = f"compiles{kernel}"
        except Exception as error:  # of the compiler, of which all are reported
            failed += 1
            outcome = f"FAILS: {error}"
        seconds = time.monotonic() - start
        print(f"{program.stage}: {program.name} {outcome} ({seconds:.0f} s)", flush=True)
    print(f"{len(recorder.recorded)} programs for {options.slices} x {TOPOLOGY}, {failed} fail")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
