import jax
import jax.numpy as jnp

from mebt_jax.runtime import compilation


def test_compilations_are_counted_once_per_program():
    counter = compilation.CompilationCounter()
    program = jax.jit(lambda x: jnp.cos(x) * 3 + 1)
    x, y = jnp.ones(3), jnp.ones(5)
    before = counter.count
    program(x), program(x), program(y)
    assert counter.count - before == 2


def test_cache_goes_where_it_is_told(tmp_path):
    saved = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
    try:
        assert compilation.enable_cache(str(tmp_path)) == tmp_path
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
        assert (
            compilation.enable_cache("off") is None and not jax.config.jax_enable_compilation_cache
        )
    finally:
        jax.config.update("jax_compilation_cache_dir", saved[0])
        jax.config.update("jax_enable_compilation_cache", saved[1])
