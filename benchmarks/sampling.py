"""Time, memory and arithmetic of decoding, beside the official program on the same machine, and
beside this program without the savings of its cache.

    python -m benchmarks.sampling --preset=sky16 --whole
    python -m benchmarks.sampling --preset=ucf128 --official=CHECKOUT --official-python=PYTHON

CHECKOUT is a checkout of github.com/Ugness/MeBT, PYTHON an interpreter with torch, numpy and
einops; both programs get the same random weights, and are timed in turn. `--whole` times whole
clips. Otherwise some passes of each kind are timed, and the time of a clip is the sum over all
passes of the plan, interpolated for drafts by their number of targets. Times do not include
compilation; memory is the peak of the process beyond the weights while it decodes.
"""

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.official_sampler import memory_kib, random_weight, reset_peak
from mebt_jax.config import Config, from_config_dict
from mebt_jax.interop.mebt_weights import transformer_from_official
from mebt_jax.methods import METHODS
from mebt_jax.methods.masked import cost, decode
from mebt_jax.methods.masked.orders import Grid
from mebt_jax.methods.masked.passes import DecodeState, PassInputs
from mebt_jax.methods.masked.plan import (
    BOOTSTRAP,
    DRAFT,
    REVISE,
    Pass,
    Plan,
    programs,
    shared_sizes,
)
from mebt_jax.methods.sampling_keys import clip_keys
from mebt_jax.methods.trained_prior import abstract_prior

OFFICIAL_LAYERS = {
    "encode": "latent_enc",
    "latent": "latent_self",
    "decode": "latent_dec",
    "update": "lt2l",
}
SHORT_LAYERS = ("encode", "latent") * 2 + ("encode",) + ("decode", "update") * 2 + ("decode",)


class Ours:
    """The sampler of this project, with the methods of the official worker."""

    def __init__(
        self,
        plan: Plan,
        grid: Grid,
        graphdef: nnx.GraphDef,
        params: nnx.State,
        batch: int,
        plain: bool,
    ) -> None:
        self.plan, self.grid, self.plain = plan, grid, plain
        self.graphdef, self.params = graphdef, params
        self.keys = clip_keys(0, jnp.arange(batch))
        reset_peak()
        self.weights_kib = memory_kib("VmRSS")

    def whole(self) -> float:
        start = time.perf_counter()
        jax.block_until_ready(
            decode.decode(
                self.graphdef, self.params, self.plan, self.grid, self.keys, plain=self.plain
            )
        )
        return time.perf_counter() - start

    def one_pass(self, index: int) -> float:
        """Seconds of the pass of this index, after compilation."""
        step, sizes, state = self.plan.passes[index], shared_sizes(self.plan)[index], self._start()
        spec = decode.pass_spec(self.plan, step, sizes, plain=self.plain)
        inputs = PassInputs.of(index, step)
        for _ in range(2):
            jax.block_until_ready(state)
            reset_peak()
            start = time.perf_counter()
            state, _ = decode.pass_program(None)(
                self.graphdef, self.params, state, self.keys, None, inputs, spec=spec
            )
            jax.block_until_ready(state)
            seconds = time.perf_counter() - start
        return seconds

    def _start(self) -> DecodeState:
        tokens = jnp.zeros((len(self.keys), self.plan.num_tokens), jnp.int32)
        return decode.start_program(None)(
            self.graphdef,
            self.params,
            self.keys,
            tokens,
            tokens > 0,
            None,
            plan=self.plan,
            grid=self.grid,
            plain=self.plain,
        )

    @property
    def peak_kib(self) -> int:
        if jax.default_backend() != "cpu":
            return (
                jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
                - sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))
            ) // 1024
        return memory_kib("VmHWM") - self.weights_kib


class OfficialProcess:
    """The official worker in its own process, which waits while this program is timed."""

    def __init__(self, python: str, checkout: str, config: Config, threads: int) -> None:
        model, checkout = config.backbone, str(Path(checkout).absolute())
        description = {
            "layers": [OFFICIAL_LAYERS[kind] for kind in model.layers],
            "width": model.width,
            "heads": model.heads,
            "threads": threads,
            "latents": model.num_latents,
            "vocab_size": config.tokenizer.codebook_size,
            "grid": config.grid,
            "device": "cpu" if jax.default_backend() == "cpu" else "cuda",
        }
        worker = [python, "-W", "ignore", "-m", "benchmarks.official_sampler"]
        self._process = subprocess.Popen(
            [*worker, checkout, json.dumps(description)],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"PYTHONPATH": checkout},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.shapes = self._answer()["shapes"]

    def request(self, **request: object) -> dict:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit("The worker of the official program has ended; its error is above.")


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset",
        default="ucf128",
        help="a config of the paper, whose model and sampling settings are used",
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--drafts", type=int, default=3, help="how many of the draft passes are timed"
    )
    parser.add_argument(
        "--layers",
        type=int,
        default=24,
        choices=(24, 10),
        help="10 is a shorter stack of the same kinds",
    )
    parser.add_argument("--order", default="confidence")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--threads", type=int, default=0, help="of the official program; 0 leaves it to torch"
    )
    parser.add_argument("--whole", action="store_true")
    parser.add_argument(
        "--plain", action="store_true", help="also time this project without its savings"
    )
    parser.add_argument("--official", default="")
    parser.add_argument("--official-python", default=sys.executable)
    return parser.parse_args()


def main() -> None:
    options = parsed_options()
    config = from_config_dict(importlib.import_module(f"configs.{options.preset}").get_config())
    model = dataclasses.replace(config.backbone, dtype=options.dtype)
    if options.layers == 10:
        model = dataclasses.replace(model, layers=SHORT_LAYERS)
    decoding = dataclasses.replace(config.decoding, order=options.order)
    config = dataclasses.replace(config, backbone=model, decoding=decoding)
    method = METHODS[config.method.kind].from_config(config)
    plan, (graphdef, params) = method.plan(), abstract_prior(method)
    flops = {
        name: cost.plan_flops(graphdef, params, plan, config.grid, plain=plain)
        for name, plain in (("ours", False), ("ours, plain", True))
    }
    peak = matmul_peak(options.dtype)
    report_arithmetic(config, plan, flops, peak)

    official = None
    if options.official:
        official = OfficialProcess(
            options.official_python, options.official, config, options.threads
        )
        weights = {
            name: random_weight(name, tuple(shape)) for name, shape in official.shapes.items()
        }
        params = jax.device_put(transformer_from_official(weights, model))
        del weights
    else:
        params = jax.tree.map(
            lambda leaf: 0.02 * jax.random.normal(jax.random.key(0), leaf.shape), params
        )
    jax.block_until_ready(params)
    ours = {
        name: Ours(plan, config.grid, graphdef, params, options.batch, plain)
        for name, plain in (("ours", False), ("ours, plain", True))
        if options.plain or not plain
    }
    measure = whole_clips if options.whole else passes
    for repeat in range(options.repeats):
        seconds, memory = measure(config, plan, ours, official, options)
        print(
            f"run {repeat}: seconds for {options.batch} clip(s), and peak memory beyond the weights"
        )
        for name, value in seconds.items():
            line = (
                f"  {name:12s} {value:9.2f} s  {memory[name] / 2**20:6.2f} GiB  "
                f"{value / seconds['ours']:5.2f} times ours"
            )
            if name in flops:
                share = options.batch * flops[name] / value / peak
                line += f"  {100 * share:5.1f} % of the matmul peak"
            print(line, flush=True)


def report_arithmetic(config: Config, plan: Plan, flops: dict[str, int], peak: float) -> None:
    ours, plain = flops["ours"], flops["ours, plain"]
    print(
        f"{config.name}, {len(config.backbone.layers)} layers, {plan.num_tokens} tokens: "
        f"{plan.num_passes} passes by {len(programs(plan))} programs; largest matrix product of "
        f"this machine {peak / 1e9:.1f} GFLOP/s"
    )
    print(
        f"  TFLOP per clip, padding included: {plain / 1e12:.1f} without the cache, "
        f"{ours / 1e12:.1f} with it: {100 * (1 - ours / plain):.1f} % fewer"
    )


def matmul_peak(dtype: str) -> float:
    """Operations per second of the best of some large matrix products."""
    size = 2048 if jax.default_backend() == "cpu" else 16384
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.dot)
    jax.block_until_ready(product(x, x))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(x, x))
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def whole_clips(
    config: Config,
    plan: Plan,
    ours: dict[str, Ours],
    official: OfficialProcess | None,
    options: argparse.Namespace,
) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of a whole batch and peak KiB, each program after the other."""
    seconds, memory = {}, {}
    for name, program in ours.items():
        program.whole()  # compiles
        reset_peak()
        seconds[name], memory[name] = program.whole(), program.peak_kib
    if official is not None:
        answer = official.request(
            do="whole", sample=dataclasses.asdict(config.decoding), batch=options.batch
        )
        seconds["official"], memory["official"] = answer["seconds"], answer["peak_kib"]
    return seconds, memory


def passes(
    config: Config,
    plan: Plan,
    ours: dict[str, Ours],
    official: OfficialProcess | None,
    options: argparse.Namespace,
) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of a whole batch from the times of some passes, and the peak KiB of any of them."""
    chosen = chosen_passes(plan, options.drafts)
    names = [*ours, *(["official"] if official else [])]
    timed: dict[str, dict[int, float]] = {name: {} for name in names}
    memory = dict.fromkeys(names, 0)
    for index in chosen:
        step = plan.passes[index]
        for name in names:
            if name == "official":
                answer = official.request(
                    do="one_pass",
                    kind=step.kind,
                    contexts=step.contexts,
                    targets=step.targets,
                    batch=options.batch,
                    top_k=plan.top_k if step.kind == DRAFT else 0,
                )
                timed[name][index], peak = answer["seconds"], answer["peak_kib"]
            else:
                timed[name][index] = ours[name].one_pass(index)
                peak = ours[name].peak_kib
            memory[name] = max(memory[name], peak)
        print(
            f"  {step.kind:9s} {step.contexts:5d} contexts {step.targets:5d} targets: "
            + ", ".join(f"{name} {timed[name][index]:.2f} s" for name in names),
            flush=True,
        )
    return {name: summed(plan, timed[name]) for name in names}, memory


def chosen_passes(plan: Plan, drafts: int) -> list[int]:
    """One bootstrap, `drafts` drafts from first to last, one revise pass."""
    of_kind = {
        kind: [i for i, step in enumerate(plan.passes) if step.kind == kind]
        for kind in (BOOTSTRAP, DRAFT, REVISE)
    }
    every = of_kind[DRAFT]
    some = [every[i] for i in np.linspace(0, len(every) - 1, min(drafts, len(every))).astype(int)]
    return of_kind[BOOTSTRAP][-1:] + some + of_kind[REVISE][:1]


def summed(plan: Plan, timed: dict[int, float]) -> float:
    """Seconds of all passes from those of some: interpolated over the number of targets for drafts,
    the same for all passes of another kind.
    """

    def targets_and_seconds(kind: str) -> list[tuple[int, float]]:
        return sorted(
            (plan.passes[i].targets, value)
            for i, value in timed.items()
            if plan.passes[i].kind == kind
        )

    def seconds(step: Pass) -> float:
        known = targets_and_seconds(step.kind)
        return float(np.interp(step.targets, *zip(*known)))

    return sum(seconds(step) for step in plan.passes)


if __name__ == "__main__":
    main()
