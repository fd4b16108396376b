"""The rooms of the house: a folder imports only from folders above it in the pipeline, and only
main imports stages.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mebt_jax"
PIPELINE = ["data", "nn", "tokenizer", "backbones", "methods", "tasks", "metrics"]
EVERYONE = {"config", "errors"}
ALLOWED = {
    package: {*EVERYONE, "runtime", *PIPELINE[: i + 1]} for i, package in enumerate(PIPELINE)
}
ALLOWED["runtime"] = {*EVERYONE, "runtime"}
ALLOWED["interop"] = {
    *EVERYONE,
    "runtime",
    "interop",
    "data",
    "nn",
    "tokenizer",
    "backbones",
    "metrics",
}
ALLOWED["sampler"] = {*EVERYONE, "runtime", *PIPELINE, "stages"}
ALLOWED["stages"] = {*EVERYONE, "runtime", "interop", "sampler", "stages", *PIPELINE}
ALLOWED["main"] = {*EVERYONE, "runtime", "stages"}
ALLOWED["aot"] = {*ALLOWED["main"], "main", "aot", "methods", "tokenizer"}
ALLOWED["config"] = {*EVERYONE, "data"}
ALLOWED["errors"] = EVERYONE

GRAB_BAGS = {"util", "utils", "helper", "helpers", "common", "misc"}


def imported_rooms(path: Path) -> set[str]:
    """Names of the mebt_jax rooms (folders or top-level modules) that a file imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {module.split(".")[1] for module in modules if module.startswith("mebt_jax.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_only_flow_down_the_pipeline(path):
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    if room == "__init__":
        assert not imported_rooms(path)
        return
    forbidden = imported_rooms(path) - ALLOWED[room]
    assert not forbidden, (
        f"{relative} imports {sorted(forbidden)}, which lies below {room} in the pipeline"
    )


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_files_have_one_topic(path):
    assert path.stem not in GRAB_BAGS
    assert path.read_text().count("\n") <= 650, f"{path} is over 650 lines; split it by topic"
