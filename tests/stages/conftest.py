"""One trained tiny tokenizer for all tests of the stages, and compiled programs shared by the
processes they start.
"""

import jax
import pytest
from training_runs import LONG_TOKENIZER, Command


@pytest.fixture
def quick_compiler():
    """Programs of this test compile in half the time, and run slower."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compilation_cache")


@pytest.fixture(scope="session")
def tokenizer_run(tmp_path_factory, compilation_cache):
    """The Command of a tokenizer run that was never interrupted."""
    command = Command(
        tmp_path_factory.mktemp("tokenizer_run"), compilation_cache, "tokenizer", **LONG_TOKENIZER
    )
    command.run()
    return command
