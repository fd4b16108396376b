"""Long videos at linear cost: see README.md. What a user imports is here."""

from typing import Any

__all__ = ["Sampler"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: `import mebt_jax` alone does not wait for JAX.
    if name == "Sampler":
        from mebt_jax.sampler import Sampler

        return Sampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
