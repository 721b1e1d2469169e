"""Imports go one way, and what is installed is whole."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: Each may import itself and those named; `deploy` may import all.
MAY_IMPORT = {
    "producers": ("stream.records",),
    "stream": ("model",),
    "model": (),
    "model.data": ("model",),
    "model.training": ("model", "model.data"),
    "model.data_check": ("model", "model.data", "model.training"),
    "model.bundle_making": ("model", "model.data", "model.training"),
    "model.evaluation": ("model", "model.data", "model.training"),
}
OURS = ("producers", "stream", "model", "deploy")


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in OURS)


def _package(module):
    """The package of a module: model.training of model.training.train, model of model.engine."""
    path = ROOT.joinpath(*module.split("."))
    return module if path.is_dir() else module.rpartition(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    folder = ROOT.joinpath(*package.split("."))
    inner = package.count(".") > 0 or package == "model"
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (folder.glob("*.py") if inner else folder.rglob("*.py"))
        for module in _imports(path)
        if _package(module) not in (package, *MAY_IMPORT[package])
        and module not in MAY_IMPORT[package]
        and not (not inner and module.startswith(f"{package}."))
    ]
    assert not wrong, "\n".join(wrong)


def test_files_beside_the_code_are_installed_with_it():
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    installed = {path for package, globs in tables.items() for glob in globs for path in (ROOT / package).glob(glob)}
    lacking = [
        path.relative_to(ROOT)
        for package in OURS
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and path not in installed
    ]
    assert not lacking, lacking
