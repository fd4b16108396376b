import ast
import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from mebt_jax.errors import UserError
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.runtime_config import MeshConfig

ONE = MeshConfig(data=1, fsdp=1, sequence=1, tensor=1)


def test_minus_one_takes_the_devices_that_are_left():
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, data=-1, fsdp=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "sequence": 1, "tensor": 1}


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 16}, {"data": -1, "fsdp": 3}, {"data": -1, "fsdp": -1}, {"tensor": 0}]
)
def test_a_mesh_that_does_not_fit_is_one_sentence(sizes):
    with pytest.raises(UserError, match=r"^config\.mesh [^\n]+\.$"):
        mesh_lib.make_mesh(dataclasses.replace(ONE, **sizes))


def test_a_batch_that_does_not_spread_names_the_field():
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, data=2, fsdp=4))
    mesh_lib.check_batch_size(mesh, 16, "config.x.batch_size")
    with pytest.raises(UserError, match=r"config\.x\.batch_size .* multiple of 8"):
        mesh_lib.check_batch_size(mesh, 12, "config.x.batch_size")


def test_heads_that_do_not_spread_name_the_field():
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, tensor=4))
    mesh_lib.check_heads(mesh, 16)
    with pytest.raises(UserError, match=r"^config\.mesh\.tensor is 4, [^\n]*heads 6; [^\n]*\.$"):
        mesh_lib.check_heads(mesh, 6)


PACKAGE = Path(mesh_lib.__file__).parents[1]
ON_A_MESH = ["stages", "methods", "metrics/networks", "sampler.py"]


def jits(path):
    """Lines of a file that use the jit of jax or of nnx."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in ("jit", "pjit", "pmap"):
            if ast.unparse(node.value) in ("jax", "nnx", "flax.nnx"):
                yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module in ("jax", "flax.nnx"):
            if {"jit", "pmap"} & {alias.name for alias in node.names}:
                yield node.lineno


def test_no_program_is_compiled_without_its_mesh():
    paths = [path for name in ON_A_MESH for path in [PACKAGE / name, *(PACKAGE / name).rglob("*")]]
    files = {str(p.relative_to(PACKAGE)): p for p in paths if p.suffix == ".py"}
    assert len(files) > 20
    found = {name: list(jits(path)) for name, path in files.items()}
    assert not any(found.values()), f"use runtime.mesh.jit in {found}"


def test_a_program_is_traced_with_its_mesh_in_scope():
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, data=8))
    seen = []

    def double(x, *, times):
        seen.append(jax.sharding.get_abstract_mesh().shape_tuple)
        return times * x

    program = mesh_lib.jit(mesh, double, static_argnames="times", out_shardings=None)
    assert float(program(np.float32(3), times=2)) == 6
    assert dict(seen[0]) == dict(mesh.shape)
    assert float(mesh_lib.jit(None, double, static_argnames="times")(np.float32(3), times=2)) == 6
    assert seen[1] == ()
