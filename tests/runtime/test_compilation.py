import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mebt_jax.runtime import compilation


def test_compilations_are_counted_once_per_program():
    counter = compilation.CompilationCounter()
    program = jax.jit(lambda x: jnp.cos(x) * 3 + 1)
    x, y = jnp.ones(3), jnp.ones(5)
    before = counter.count
    program(x), program(x), program(y)
    assert counter.count - before == 2


PROGRAM = """
import sys
import jax, jax.numpy as jnp
from mebt_jax.runtime import compilation
compilation.MIN_COMPILE_SECONDS = 0.0
folder = compilation.enable_cache(sys.argv[1])
jax.jit(lambda x: jnp.cos(x) * 3 + 1)(jnp.ones(3))
print(folder)
"""


@pytest.mark.parametrize("folder", ["", "programs", "off"])
def test_compiled_programs_are_stored_where_the_config_says(tmp_path, folder):
    stored = {"": tmp_path / ".cache" / "mebt_jax", "programs": tmp_path / "programs"}.get(folder)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("JAX_")},
        "JAX_PLATFORMS": "cpu",
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    argument = str(stored) if folder == "programs" else folder
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split()[-1] == str(stored)
    folders = {path.parent for path in tmp_path.rglob("*") if path.is_file()}
    assert folders == ({stored} if stored else set())
