"""Nothing of ours reads a format that can run code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("producers", "stream", "model", "deploy")
FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
FORBIDDEN_CALLS = {"read_pickle", "to_pickle", "unsafe_load", "full_load", "eval", "exec", "os.system", "os.popen"}


def problems(source: str) -> Iterator[str]:
    """What is wrong in a module, each with its line."""
    for node in ast.walk(ast.parse(source)):
        for module in _imported(node):
            if module.split(".")[0] in FORBIDDEN_MODULES:
                yield f"{node.lineno}: imports {module}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("allow_pickle", "False") != "False":
                yield f"{node.lineno}: {name} with allow_pickle"
            if None in given and name.endswith(("np.load", "numpy.load", "torch.load")):
                yield f"{node.lineno}: {name} with ** hides its arguments"
            if name.endswith("torch.load") and given.get("weights_only") != "True":
                yield f"{node.lineno}: {name} without weights_only=True"
            if name in FORBIDDEN_CALLS or name.rpartition(".")[2] in FORBIDDEN_CALLS - {"eval", "exec"}:
                yield f"{node.lineno}: calls {name}"
            if given.get("shell", "False") != "False":
                yield f"{node.lineno}: {name} through a shell"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        # The error that PyTorch raises for a file that is not what it says; it loads nothing.
        harmless = node.module == "pickle" and [alias.name for alias in node.names] == ["UnpicklingError"]
        return [] if harmless else [node.module or ""]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        return [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
    return []


MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_no_module_reads_what_can_run_code() -> None:
    assert len(MODULES) > 150
    found = [f"{path.relative_to(ROOT)}:{one}" for path in MODULES for one in problems(path.read_text("utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "import importlib\nimportlib.import_module('marshal')",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=given)",
        "np.load(path, **options)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pd.read_pickle(path)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_each_way_to_run_code_is_seen(source: str) -> None:
    assert list(problems(source))


@pytest.mark.parametrize(
    "source", ["np.load(path)", "torch.load(path, weights_only=True)", "model.eval()", "import json"]
)
def test_what_is_safe_is_let_pass(source: str) -> None:
    assert not list(problems(source))
