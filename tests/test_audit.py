"""`.ci/audit` tells vulnerable, not checked and sound apart."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

AUDIT = Path(__file__).resolve().parents[1] / ".ci" / "audit"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("ci_audit", str(AUDIT))
    spec = importlib.util.spec_from_loader("ci_audit", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ci_audit"] = module  # dataclasses look there
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


def answer(*dependencies: dict[str, Any]) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


SOUND = {"name": "numpy", "version": "2.3.0", "vulns": []}
SILENT = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.14.1)"}
ILL = {
    "name": "aiohttp",
    "version": "3.9.0",
    "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["3.9.4", "3.10.1"], "aliases": ["CVE-2026-1", "GHSA-aaaa"]}],
}


@pytest.mark.parametrize(
    ("dependencies", "required", "status", "told", "not_told"),
    [
        ([SOUND], True, 0, "1 packages of requirements.lock checked, no known", "NOT CHECKED"),
        (
            [SOUND, ILL],
            False,
            1,
            "aiohttp 3.9.0: PYSEC-2026-1 = CVE-2026-1 = GHSA-aaaa; mended in 3.9.4, 3.10.1",
            "NOT",
        ),
        ([SILENT], False, 0, "NOT CHECKED: the service answered for none of 1 packages", "no known"),
        ([SILENT], True, 3, "NOT CHECKED", "no known"),
        ([SOUND, SILENT], False, 0, "NOT CHECKED: no answer for torch\n1 packages", "answered for none"),
        ([SOUND, SILENT], True, 3, "no answer for torch", "answered for none"),
        ([ILL, SILENT], True, 1, "VULNERABLE  aiohttp", "answered for none"),
        ([], True, 3, "NOT CHECKED", "no known"),
    ],
)
def test_what_was_found_and_what_was_not_asked_are_told_apart(
    audit: ModuleType, dependencies: list[Any], required: bool, status: int, told: str, not_told: str
) -> None:
    text, found = audit.report(audit.read_answer(answer(*dependencies), "", {}), required)
    assert (found, told in text, not_told in text) == (status, True, False), text


@pytest.mark.parametrize("stdout", ["", "Traceback", "[]", "{}"])
def test_a_service_out_of_reach_is_no_clean_bill(audit: ModuleType, stdout: str) -> None:
    outcome = audit.read_answer(stdout, "WARNING: …\nERROR:pip_audit._cli:Failed to connect to the service\n", {})
    assert audit.report(outcome, False) == ("NOT CHECKED: ERROR:pip_audit._cli:Failed to connect to the service", 0)
    assert audit.report(outcome, True)[1] == 3


def test_an_ignored_advisory_is_still_shown_with_its_reason(audit: ModuleType) -> None:
    ignores = audit.read_ignores('[[ignore]]\nid = "CVE-2026-1"\nreason = "no server here"\ndate = 2026-11-30\n')
    text, status = audit.report(audit.read_answer(answer(ILL), "", ignores), True)
    assert status == 0
    assert "aiohttp 3.9.0" in text
    assert "ignored: no server here (2026-11-30)" in text
    assert audit.report(audit.read_answer(answer(ILL), "", {"CVE-2026-2": "another"}), True)[1] == 1


@pytest.mark.parametrize(
    "text",
    [
        "[[ignore]\n",
        '[[ignore]]\nid = "CVE-1"\ndate = 2026-11-30\n',
        '[[ignore]]\nid = "CVE-1"\nreason = " "\ndate = 2026-11-30\n',
        '[[ignore]]\nid = "CVE-1"\nreason = "so"\n',
        '[[ignore]]\nid = "CVE-1"\nreason = "so"\ndate = "soon"\n',
        'ignore = ["CVE-1"]\n',
    ],
)
def test_an_ignore_without_reason_and_date_is_refused(audit: ModuleType, text: str) -> None:
    with pytest.raises(audit.BadIgnoresError, match=r"audit-ignore\.toml"):
        audit.read_ignores(text)


def test_the_ignores_of_this_project_are_sound(audit: ModuleType) -> None:
    audit.read_ignores(AUDIT.with_name("audit-ignore.toml").read_text())
