"""Published weights that can be converted: address, licence, size and digest of each file.

Only `python -m mebt_jax.interop.fetch NAME` downloads them.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Weights:
    """One published file.

    `digest` is "<algorithm>:<hex>", or its first digits if only those are published, "" if none
    is. "git" is the name that git gives to the content, as repositories list it. `size` is in
    bytes, 0 if it is not published.
    """

    file: str
    url: str
    page: str  # where a person finds the file if the url is gone
    licence: str
    purpose: str
    convert: str  # arguments of the converter besides the file and --out
    size: int = 0
    digest: str = ""
    by_hand: bool = False  # the url is a page, not the file


def _drive(file_id: str) -> str:
    return f"https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t"


TATS = "https://github.com/songweige/TATS"
MEBT = "https://github.com/Ugness/MeBT"
TGAN2 = "https://github.com/rezoo/tgan2/releases"
TATS_LICENCE = "MIT (TATS)"


def _tokenizer(data: str, file_id: str) -> Weights:
    return Weights(
        f"vqgan_{data}.ckpt",
        _drive(file_id),
        f"{TATS}#datasets-and-trained-models",
        TATS_LICENCE,
        f"TATS's 3D VQGAN of {data}, the tokenizer of the official MeBT",
        "",
    )


def _mebt(data: str) -> Weights:
    folder = "https://drive.google.com/drive/folders/1BXo1ABfM2FY_3nRVfsre9MYb2Uaa8cyx"
    return Weights(
        f"mebt_{data}.ckpt",
        folder,
        f"{MEBT}#checkpoints",
        "none given; ask the authors",
        f"official MeBT of {data}, with its tokenizer inside",
        f"--also vqgan_{data}.ckpt",
        by_hand=True,
    )


WEIGHTS = {
    "vqgan-ucf101": _tokenizer("ucf101", "15Otpyr7v6Wnyw2HfQr_cuaRsBiSMd7Rh"),
    "vqgan-sky": _tokenizer("sky", "1ExV0XdJKlGP4lzn0X2W9307X-DE240iW"),
    "vqgan-taichi": _tokenizer("taichi", "1hcWIADkDsm916Xkxfz1YbljHU2ZAQFpQ"),
    "mebt-ucf101": _mebt("ucf101"),
    "mebt-sky": _mebt("sky"),
    "mebt-taichi": _mebt("taichi"),
    "i3d": Weights(
        "i3d_pretrained_400.pt",
        "https://raw.githubusercontent.com/songweige/TATS/main/tats/fvd/i3d_pretrained_400.pt",
        f"{TATS}/tree/main/tats/fvd",
        "Apache-2.0 (DeepMind's kinetics-i3d, converted by VideoGPT)",
        "I3D of Kinetics-400, whose logits FVD and KVD compare",
        "",
        digest="git:a867b87ac3a9097d200598b1d48a1b890d8ec744",
    ),
    "lpips": Weights(
        "vgg.pth",
        "https://raw.githubusercontent.com/songweige/TATS/main/tats/modules/cache/vgg.pth",
        f"{TATS}/tree/main/tats/modules/cache",
        "BSD-2-Clause (richzhang/PerceptualSimilarity)",
        "linear weights of LPIPS; VGG16 is the other half",
        "--also vgg16-397923af.pth",
        size=7289,
        digest="sha256:a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
    "vgg16": Weights(
        "vgg16-397923af.pth",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "https://pytorch.org/vision/stable/models/vgg.html",
        "BSD-3-Clause (torchvision)",
        "the network of LPIPS",
        "--also vgg.pth",
        digest="sha256:397923af",
    ),
    "c3d": Weights(
        "conv3d_deepnetA_ucf.npz",
        f"{TGAN2}/download/v1.0/conv3d_deepnetA_ucf.npz",
        TGAN2,
        "MIT (tgan2)",
        "C3D of UCF-101, the classifier of the Inception Score",
        "--also mean2.npz",
    ),
    "c3d-mean": Weights(
        "mean2.npz",
        f"{TGAN2}/download/v1.0/mean2.npz",
        TGAN2,
        "MIT (tgan2)",
        "the pixel mean of C3D",
        "is the second file of c3d",
    ),
}
