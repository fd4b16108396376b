"""Time, memory and arithmetic of decoding, against the official program on the same machine and
against itself without savings.

    python -m benchmarks.sampling --preset=sky16 --whole
    python -m benchmarks.sampling --preset=ucf128 --official=CHECKOUT --official-python=PYTHON

CHECKOUT is a checkout of github.com/Ugness/MeBT, PYTHON an interpreter with torch, numpy and
einops; both programs get the same random weights, and are timed in turn. `--whole` times whole
clips; otherwise single passes of each kind are timed and the time of a clip is their sum over all
passes of the plan, drafts between the measured ones by their number of targets. Times do not
include compilation; memory is the peak of the process beyond the weights, while it decodes.
"""

import argparse
import dataclasses
import importlib
import json
import math
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
from mebt_jax.methods.masked import cost, decode
from mebt_jax.methods.masked.plan import (
    BOOTSTRAP,
    DRAFT,
    REVISE,
    Pass,
    Plan,
    build_plan,
    programs,
    shared_sizes,
)
from mebt_jax.stages.prior import abstract_transformer

OFFICIAL_LAYERS = {
    "encode": "latent_enc",
    "latent": "latent_self",
    "decode": "latent_dec",
    "update": "lt2l",
}
SHORT_LAYERS = ("encode", "latent") * 2 + ("encode",) + ("decode", "update") * 2 + ("decode",)


class Ours:
    """The sampler of this project, asked in the same way as the official worker."""

    def __init__(
        self, config: Config, plan: Plan, params: nnx.State, batch: int, plain: bool
    ) -> None:
        self.config, self.plan, self.params, self.plain = config, plan, params, plain
        self.graphdef, _ = abstract_transformer(config)
        self.keys = decode.clip_keys(0, jnp.arange(batch))
        reset_peak()
        self.weights_kib = memory_kib("VmRSS")
        tokens = jnp.zeros((batch, plan.num_tokens), jnp.int32)
        self._start = lambda: decode.start(
            self.graphdef,
            params,
            self.keys,
            tokens,
            tokens > 0,
            plan=plan,
            grid=config.grid,
            plain=plain,
            sharding=None,
        )

    def whole(self) -> float:
        start = time.perf_counter()
        jax.block_until_ready(
            decode.decode(
                self.graphdef, self.params, self.plan, self.config.grid, self.keys, plain=self.plain
            )
        )
        return time.perf_counter() - start

    def one_pass(self, index: int) -> float:
        """Compiles if it must, then times the pass of this number."""
        one, sizes, state = self.plan.passes[index], shared_sizes(self.plan)[index], self._start()
        by_confidence = one.kind == DRAFT and self.plan.order == "confidence"
        for _ in range(2):
            jax.block_until_ready(state)
            reset_peak()
            start = time.perf_counter()
            state, _ = decode.pass_on(jax.default_backend())(
                self.graphdef,
                self.params,
                state,
                self.keys,
                decode.pass_inputs(index, one),
                kind=one.kind,
                sizes=sizes,
                by_confidence=by_confidence,
                num_known=0,
                partitions=self.plan.partitions,
                top_k=self.plan.top_k,
                top_p=self.plan.top_p,
                block=decode.LOGITS_BLOCK,
                sharding=None,
            )
            jax.block_until_ready(state)
            seconds = time.perf_counter() - start
        return seconds

    @property
    def peak_kib(self) -> int:
        if jax.default_backend() != "cpu":
            return (
                jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
                - sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))
            ) // 1024
        return memory_kib("VmHWM") - self.weights_kib


class OfficialProcess:
    """The worker in its own process, which waits while we are timed."""

    def __init__(self, python: str, checkout: str, config: Config, threads: int) -> None:
        model = config.transformer
        described = {
            "layers": [OFFICIAL_LAYERS[kind] for kind in model.layers],
            "width": model.width,
            "heads": model.heads,
            "threads": threads,
            "latents": model.latents,
            "codes": config.tokenizer.codes,
            "grid": config.grid,
            "device": "cpu" if jax.default_backend() == "cpu" else "cuda",
        }
        worker = str(Path(__file__).with_name("official_sampler.py"))
        self._process = subprocess.Popen(
            [python, "-W", "ignore", worker, checkout, json.dumps(described)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.shapes = self._answer()["shapes"]

    def ask(self, **request: object) -> dict:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit("the official program's worker ended; its message is above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    options = parser.parse_args()

    config = from_config_dict(importlib.import_module(f"configs.{options.preset}").get_config())
    model = dataclasses.replace(config.transformer, dtype=options.dtype)
    if options.layers == 10:
        model = dataclasses.replace(model, layers=SHORT_LAYERS)
    config = dataclasses.replace(
        config, transformer=model, sample=dataclasses.replace(config.sample, order=options.order)
    )
    plan = build_plan(config.sample, math.prod(config.grid))
    peak = matmul_peak(options.dtype)
    report_arithmetic(config, plan, peak)

    official = None
    if options.official:
        official = OfficialProcess(
            options.official_python, options.official, config, options.threads
        )
        weights = {
            name: random_weight(name, tuple(shape)) for name, shape in official.shapes.items()
        }
        params = jax.device_put(
            transformer_from_official(weights, model)
        )  # once, not in every call
        jax.block_until_ready(params)
        del weights
    else:
        graphdef, abstract = abstract_transformer(config)
        params = jax.tree.map(
            lambda leaf: 0.02 * jax.random.normal(jax.random.key(0), leaf.shape), abstract
        )
    jax.block_until_ready(params)
    ours = {"ours": Ours(config, plan, params, options.batch, plain=False)}
    if options.plain:
        ours["ours, plain"] = Ours(config, plan, params, options.batch, plain=True)
    measure = whole_clips if options.whole else passes
    for repeat in range(options.repeats):
        seconds, memory = measure(config, plan, ours, official, options)
        print(
            f"run {repeat}: seconds for {options.batch} clip(s), and peak memory beyond the weights"
        )
        for name, value in seconds.items():
            flops = options.batch * cost.plan_flops(
                model, config.tokenizer.codes, plan, plain=name != "ours", padded="ours" in name
            )
            print(
                f"  {name:12s} {value:9.2f} s  {memory[name] / 2**20:6.2f} GiB  "
                f"{100 * flops / value / peak:5.1f} % of the "
                f"matmul peak  {value / seconds['ours']:5.2f} times ours"
            )


def report_arithmetic(config: Config, plan: Plan, peak: float) -> None:
    count = lambda **how: (
        cost.plan_flops(config.transformer, config.tokenizer.codes, plan, **how) / 1e12
    )  # noqa: E731
    full, ours = count(plain=True, padded=False), count()
    print(
        f"{config.name}, {len(config.transformer.layers)} layers, {plan.num_tokens} tokens: "
        f"{plan.num_passes} passes by "
        f"{len(programs(plan))} programs; largest matrix product of this machine {peak / 1e9:.1f} "
        "GFLOP/s"
    )
    print(
        f"  TFLOP per clip: {full:.1f} with everything computed anew, {count(padded=False):.1f} "
        "with what is needed, "
        f"{ours:.1f} with padding: {100 * (1 - ours / full):.1f} % fewer"
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
        answer = official.ask(
            do="whole", sample=dataclasses.asdict(config.sample), batch=options.batch
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
    """Seconds of a whole batch put together from timed passes, and the peak KiB of any of them."""
    chosen = chosen_passes(plan, options.drafts)
    names = [*ours, *(["official"] if official else [])]
    timed: dict[str, dict[int, float]] = {name: {} for name in names}
    memory = dict.fromkeys(names, 0)
    for index in chosen:
        one = plan.passes[index]
        for name in names:
            if name == "official":
                answer = official.ask(
                    do="one_pass",
                    kind=one.kind,
                    contexts=one.contexts,
                    targets=one.targets,
                    batch=options.batch,
                    top_k=plan.top_k if one.kind == DRAFT else 0,
                )
                timed[name][index], peak = answer["seconds"], answer["peak_kib"]
            else:
                timed[name][index] = ours[name].one_pass(index)
                peak = ours[name].peak_kib
            memory[name] = max(memory[name], peak)
        print(
            f"  {one.kind:9s} {one.contexts:5d} contexts {one.targets:5d} targets: "
            + ", ".join(f"{name} {timed[name][index]:.2f} s" for name in names),
            flush=True,
        )
    return {name: summed(plan, timed[name]) for name in names}, memory


def chosen_passes(plan: Plan, drafts: int) -> list[int]:
    """One bootstrap, `drafts` drafts from first to last, one revise pass."""
    of_kind = {
        kind: [i for i, one in enumerate(plan.passes) if one.kind == kind]
        for kind in (BOOTSTRAP, DRAFT, REVISE)
    }
    every = of_kind[DRAFT]
    some = [every[i] for i in np.linspace(0, len(every) - 1, min(drafts, len(every))).astype(int)]
    return of_kind[BOOTSTRAP][-1:] + some + of_kind[REVISE][:1]


def summed(plan: Plan, timed: dict[int, float]) -> float:
    """Seconds of all passes from those of some: drafts by interpolation over their targets, others
    alike within a kind.
    """

    def targets_and_seconds(kind: str) -> list[tuple[int, float]]:
        return sorted(
            (plan.passes[i].targets, value)
            for i, value in timed.items()
            if plan.passes[i].kind == kind
        )

    def seconds(one: Pass) -> float:
        known = targets_and_seconds(one.kind)
        return float(np.interp(one.targets, *zip(*known)))

    return sum(seconds(one) for one in plan.passes)


if __name__ == "__main__":
    main()
