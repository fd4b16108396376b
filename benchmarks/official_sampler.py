"""Worker of benchmarks/sampling.py and train_step.py: the official PyTorch program, timed in its
own process and environment.

    PYTHONPATH=CHECKOUT python -m benchmarks.official_sampler CHECKOUT MODEL

Needs torch, numpy and einops. CHECKOUT is a checkout of github.com/Ugness/MeBT, MODEL a JSON object
(see `Official`). Reads a JSON request from each line and answers it with one line.
"""

import ctypes
import json
import sys
import time
import types
import zlib
from pathlib import Path

import numpy as np


def random_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of a parameter as a function of its official name, the same in both programs."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if len(shape) == 1:
        return (noise * 0.1 + name.endswith("weight")).astype(np.float32)
    return noise * np.float32(0.02)


def memory_kib(field: str) -> int:
    """A field of this process's memory: VmRSS now, VmHWM its peak."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1])


def reset_peak() -> None:
    """Returns freed memory that malloc holds (the compiler's, say) to the system, and resets
    VmHWM.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


class Official:
    """The official Net2NetTransformer with weights of `random_weight`."""

    def __init__(self, checkout: Path, model: dict) -> None:
        """`model`: layers (official names), width, heads, latents, vocab_size, grid, threads,
        device.
        """
        import torch

        self.torch, self.grid, self.device = torch, model["grid"], model["device"]
        if model["threads"]:
            torch.set_num_threads(model["threads"])
        tokens = int(np.prod(self.grid))
        cls = import_transformer(checkout)
        settings = {
            "unconditional": True,
            "vocab_size": model["vocab_size"],
            "first_stage_vocab_size": model["vocab_size"],
            "block_size": tokens,
            "n_layer": len(model["layers"]),
            "n_head": model["heads"],
            "n_embd": model["width"],
            "n_unmasked": 0,
            "embd_pdrop": 0,
            "resid_pdrop": 0,
            "attn_pdrop": 0,
            "sample_every_n_latent_frames": 0,
            "first_stage_key": "video",
            "cond_stage_key": "label",
            "vtokens": True,
            "vtokens_pos": False,
            "vis_epoch": 50,
            "sos_emb": model["latents"],
            "avg_loss": True,
            "class_cond_dim": None,
            "mode": list(model["layers"]),
        }
        mask = {
            "target": "mebt.mask_sampler.MaskGen",
            "params": {
                "iid": False,
                "schedule": "cosine",
                "max_token": tokens,
                "method": "mlm",
                "shape": list(self.grid),
                "t_range": [0.0, 1.0],
                "budget": tokens,
            },
        }
        self.model, self.optimizer, self.loss = build(cls, settings, mask).eval(), None, None
        self.shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        for name, value in self.model.state_dict().items():
            value.copy_(torch.from_numpy(random_weight(name, tuple(value.shape))))
        self.model.to(self.device)
        reset_peak()
        self.weights_kib = (
            torch.cuda.memory_allocated() // 1024 if self.device != "cpu" else memory_kib("VmRSS")
        )

    def one_pass(self, kind: str, contexts: int, targets: int, top_k: int, batch: int) -> float:
        """Seconds of one pass with these counts: model, sampling, choice of committed tokens."""
        torch, tokens = self.torch, int(np.prod(self.grid))
        positions = torch.stack([torch.randperm(tokens, device=self.device) for _ in range(batch)])
        context, target = positions[:, :contexts], positions[:, contexts : contexts + targets]
        x = torch.zeros((batch, *self.grid), dtype=torch.long, device=self.device)
        start = self.clock()
        if kind == "revise":
            self.model.revise(x, None, 0.1, None, None, 1, False, context, target)
        else:
            self.model.sample(
                x,
                None,
                1.0,
                top_k or None,
                None,
                1,
                context,
                target,
                context_temperature=2.0,
                strategy="bootstrap" if kind == "bootstrap" else "maskgit",
            )
        return self.clock() - start

    def whole(self, sample: dict, batch: int) -> float:
        """Seconds of one batch of clips with the calls of the official scripts: bootstrap and
        draft, then the revise rounds.
        """
        torch = self.torch
        x = torch.zeros((batch, *self.grid), dtype=torch.long, device=self.device)
        context = target = None
        start = self.clock()
        if sample["bootstrap_steps"]:
            x, context, target = self.model.sample(
                x,
                None,
                1.0,
                None,
                None,
                sample["bootstrap_steps"],
                strategy="bootstrap",
                context_temperature=sample["choice_temperature"],
            )
        x = self.model.sample(
            x.reshape(batch, *self.grid),
            None,
            1.0,
            sample["top_k"] or None,
            None,
            sample["draft_steps"],
            context,
            target,
            context_temperature=sample["choice_temperature"],
        )[0]
        self.model.draft_and_revise(
            x.reshape(batch, *self.grid),
            None,
            n_revise=sample["revise_partitions"],
            revise_t=sample["revise_temperature"],
            M=sample["revise_rounds"],
            skip_draft=True,
        )
        return self.clock() - start

    def train_step(self, contexts: int, batch: int) -> float:
        """Seconds of one whole training step with `contexts` known tokens: loss, accuracies,
        gradients, AdamW.
        """
        torch, tokens = self.torch, int(np.prod(self.grid))
        if self.optimizer is None:
            self.model.learning_rate, self.model.weight_decay = 3e-5, 1e-4
            self.optimizer = self.model.configure_optimizers()
        self.model.train()
        # Training masks 1 - t of the tokens, for a t that is drawn from this range.
        self.model.mask_sampler.schedule, self.model.range = "linear", [contexts / tokens] * 2
        positions = torch.stack([torch.randperm(tokens, device=self.device) for _ in range(batch)])
        clips = {
            "video": torch.zeros((batch, *self.grid), dtype=torch.long, device=self.device),
            "indices": positions,
        }
        start = self.clock()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model.training_step(clips, 0)
        loss.backward()
        self.optimizer.step()
        seconds = self.clock() - start
        self.loss = float(loss)
        return seconds

    def clock(self) -> float:
        if self.device != "cpu":
            self.torch.cuda.synchronize()
        return time.perf_counter()


def import_transformer(checkout: Path) -> type:
    """The class Net2NetTransformer without modules that sampling does not use: training loop, video
    readers, configuration files.
    """
    import torch

    lightning = types.ModuleType("pytorch_lightning")
    lightning.LightningModule = type(
        "LightningModule",
        (torch.nn.Module,),
        {
            "save_hyperparameters": lambda self: None,
            "log": lambda self, *_, **__: None,
            "global_step": 0,
            "device": property(lambda self: next(self.parameters()).device),
        },
    )
    download = types.ModuleType("mebt.download")
    download.load_vqgan = None
    sys.modules |= {"pytorch_lightning": lightning, "mebt.download": download}
    # Empty packages, since their own __init__ imports everything.
    for name in ("mebt", "mebt.modules"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(checkout / name.replace(".", "/"))]
    for name in ("skvideo", "skvideo.io", "imageio", "PIL", "PIL.Image"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["skvideo"].io, sys.modules["PIL"].Image = (
        sys.modules["skvideo.io"],
        sys.modules["PIL.Image"],
    )
    from mebt.transformer import Net2NetTransformer

    return Net2NetTransformer


class Settings(dict):
    """Replaces OmegaConf in the official code: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    __setattr__ = dict.__setitem__


def build(cls: type, settings: dict, mask: dict):
    """The model from plain settings."""
    return cls(
        Settings(settings),
        Settings(params=Settings(ckpt_path="")),
        Settings(mask, params=Settings(mask["params"])),
    )


def main() -> None:
    official = Official(Path(sys.argv[1]), json.loads(sys.argv[2]))
    print(json.dumps({"shapes": official.shapes}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if official.device == "cpu":
            reset_peak()
        else:
            official.torch.cuda.reset_peak_memory_stats()
        processor = time.process_time()
        seconds = getattr(official, request.pop("do"))(**request)
        processor = time.process_time() - processor
        peak = memory_kib("VmHWM") - official.weights_kib
        if official.device != "cpu":
            peak = official.torch.cuda.max_memory_allocated() // 1024 - official.weights_kib
        print(
            json.dumps(
                {
                    "seconds": seconds,
                    "processor": processor,
                    "peak_kib": peak,
                    "loss": official.loss,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
