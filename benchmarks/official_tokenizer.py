"""Worker of benchmarks/tokenizer.py: the official PyTorch modules, timed in their own process and
environment.

    python -m benchmarks.official_tokenizer CHECKOUT SETTINGS

Needs torch and numpy. CHECKOUT is a checkout of github.com/Ugness/MeBT, SETTINGS a JSON object (see
`main`). Prints one JSON line for each kind of work: encode, decode, train.
"""

import importlib
import json
import sys
import time
import types
from pathlib import Path

from benchmarks.official_sampler import memory_kib, reset_peak


def import_modules(checkout: Path) -> tuple[types.ModuleType, types.ModuleType]:
    """mebt.vqgan and mebt.modules.codebook without modules that are not used here: training loop,
    video readers, VGG.
    """
    import torch

    lightning = types.ModuleType("pytorch_lightning")
    lightning.LightningModule = torch.nn.Module
    sys.modules["pytorch_lightning"] = lightning
    for name in ("skvideo", "skvideo.io", "imageio", "PIL", "PIL.Image"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["skvideo"].io, sys.modules["PIL"].Image = (
        sys.modules["skvideo.io"],
        sys.modules["PIL.Image"],
    )
    # Empty packages, since their own __init__ imports everything.
    for name in ("mebt", "mebt.modules"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(checkout / name.replace(".", "/"))]
    codebook = importlib.import_module("mebt.modules.codebook")
    sys.modules["mebt.modules"].Codebook, sys.modules["mebt.modules"].LPIPS = (
        codebook.Codebook,
        None,
    )
    return importlib.import_module("mebt.vqgan"), codebook


def main() -> None:
    """Settings: batch, frames, side, hidden, codebook_size, width, compression, runs, device."""
    import torch

    settings = json.loads(sys.argv[2])
    vqgan, codebook_module = import_modules(Path(sys.argv[1]))
    hidden, width, compression, device = (
        settings["hidden"],
        settings["width"],
        settings["compression"],
        settings["device"],
    )
    encoder = vqgan.Encoder(hidden, compression, 3)
    top = encoder.out_channels
    modules = torch.nn.ModuleDict(
        {
            "encoder": encoder,
            "before": vqgan.SamePadConv3d(top, width, 1),
            "after": vqgan.SamePadConv3d(width, top, 1),
            "codebook": codebook_module.Codebook(settings["codebook_size"], width),
            "decoder": vqgan.Decoder(hidden, compression, 3),
        }
    ).to(device)
    modules["codebook"]._need_init = False
    optimizer = torch.optim.Adam(modules.parameters(), lr=3e-4, betas=(0.5, 0.9))
    video = (
        torch.rand(
            settings["batch"],
            3,
            settings["frames"],
            settings["side"],
            settings["side"],
            device=device,
        )
        - 0.5
    )

    def encode():
        with torch.no_grad():
            return modules["codebook"](modules["before"](modules["encoder"](video)))["encodings"]

    def decode():
        with torch.no_grad():
            embeddings = torch.nn.functional.embedding(tokens, modules["codebook"].embeddings)
            return modules["decoder"](modules["after"](embeddings.movedim(-1, 1)))

    def train():
        optimizer.zero_grad(set_to_none=True)
        quantized = modules["codebook"](modules["before"](modules["encoder"](video)))
        rebuilt = modules["decoder"](modules["after"](quantized["embeddings"]))
        (4 * torch.nn.functional.l1_loss(rebuilt, video) + quantized["commitment_loss"]).backward()
        optimizer.step()

    modules.eval()
    tokens = encode()
    reset_peak()
    before = memory_kib("VmRSS")
    for name, work in (("encode", encode), ("decode", decode), ("train", train)):
        modules.train(name == "train")
        seconds = []
        reset_peak()
        for _ in range(settings["runs"] + 1):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        print(
            json.dumps(
                {
                    "work": name,
                    "seconds": min(seconds[1:]),
                    "peak_kib": memory_kib("VmHWM") - before,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
