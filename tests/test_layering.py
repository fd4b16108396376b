"""A package imports only from those above it in the pipeline; main and aot alone import stages."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mebt_jax"
PIPELINE = ["data", "nn", "tokenizer", "backbones", "methods", "tasks", "metrics"]
EVERYONE = {"config", "config_fields", "earlier_versions", "errors"}
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
    "methods",
    "metrics",
}
ALLOWED["sampler"] = {*EVERYONE, "runtime", *PIPELINE}
ALLOWED["stages"] = {*EVERYONE, "runtime", "interop", "sampler", "stages", *PIPELINE}
ALLOWED["main"] = {*EVERYONE, "runtime", "stages"}
ALLOWED["aot"] = {*ALLOWED["stages"], "main", "aot"}
# Its dataclasses, which lie in the packages that use them, and inside of functions the two tables.
ALLOWED["config"] = {*EVERYONE, "runtime", *PIPELINE}
ALLOWED |= dict.fromkeys(("config_fields", "earlier_versions", "errors"), {"errors"})

GRAB_BAGS = {"util", "utils", "helper", "helpers", "common", "misc"}


def imported_packages(path: Path) -> set[str]:
    """Names of the parts of mebt_jax (folders or top-level modules) that a file imports."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        packages |= {module.split(".")[1] for module in modules if module.startswith("mebt_jax.")}
    return packages - {"__version__"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_only_flow_down_the_pipeline(path):
    relative = path.relative_to(PACKAGE)
    part = relative.parts[0].removesuffix(".py")
    if part == "__init__":  # the public API
        assert imported_packages(path) <= {"sampler"}
        return
    forbidden = imported_packages(path) - ALLOWED[part]
    assert not forbidden, (
        f"{relative} imports {sorted(forbidden)}, which lies below {part} in the pipeline"
    )


def test_the_package_needs_no_file_beside_it():
    """Config files are read by path, so that an installed package runs in any folder."""
    for path in PACKAGE.rglob("*.py"):
        names = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in [getattr(node, "module", None) or "", *(a.name for a in node.names)]
        }
        assert not names & {"configs", "tests", "benchmarks"}, path
        assert "sys.path" not in path.read_text(), path


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_files_have_one_topic(path):
    assert path.stem not in GRAB_BAGS
    assert path.read_text().count("\n") <= 460, f"{path} is over 460 lines; split it by topic"


def test_file_names_are_unique():
    """In an editor's tab bar four files called tokenizer.py are one blur."""
    names = [path.name for path in PACKAGE.rglob("*.py") if path.name[0] != "_"]
    # A stage has the name of the package that it runs, and both seams have their interface.
    allowed = {"interface.py"}
    assert {name for name in names if names.count(name) > 1} <= allowed
