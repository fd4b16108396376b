"""Strict test environment: eight CPU devices so that sharding is always exercised, and no silent
rank promotion.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is compilation of tiny programs, which optimized code would not repay.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
# Threads of NumPy's linear algebra wait for each other for longer than its tiny matrices take.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
