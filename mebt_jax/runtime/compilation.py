"""The persistent compilation cache, compiler options, and a count of the programs that XLA
built.
"""

from pathlib import Path

import jax

DEFAULT_FOLDER = "~/.cache/mebt_jax"
MIN_COMPILE_SECONDS = 0.5  # cheaper programs are rebuilt faster than they are looked up

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def enable_cache(folder: str) -> Path | None:
    """Stores compiled programs in `folder` ("" is ~/.cache/mebt_jax, "off" stores none); returns
    the folder in use.
    """
    if folder == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    path = Path(folder or DEFAULT_FOLDER).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def low_memory_compiler_options(platform: str) -> dict[str, str]:
    """Compiler options for `jax.jit` of programs that hold large arrays.

    On CPU, XLA's default schedule runs as many operations at once as it can. It computes much of a
    backward pass long before it is needed (half as much memory again in a step of the tokenizer),
    and slices the weights of decoding out of their stacks early (twice the memory for short clips).
    Matrix products use all cores anyway, so a schedule for little memory is as fast
    (benchmarks/RESULTS.md).
    """
    return (
        {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        if platform == "cpu"
        else {}
    )


class CompilationCounter:
    """Counts the programs that were built or loaded from the cache since its creation, and sums
    the seconds that this took.
    """

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_: object) -> None:
        if event == _COMPILE_EVENT:
            self.count += 1
            self.seconds += seconds
