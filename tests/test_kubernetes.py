"""The manifests ask the pages that there are, and give a process no more than it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

FOLDER = Path(__file__).parents[1] / "deploy" / "kubernetes"
MANIFESTS = [manifest for path in sorted(FOLDER.glob("*.yaml")) for manifest in yaml.safe_load_all(path.read_text())]
DEPLOYMENTS = [manifest for manifest in MANIFESTS if manifest["kind"] == "Deployment"]


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    [only] = deployment["spec"]["template"]["spec"]["containers"]
    return dict(only)


def test_there_is_a_deployment_for_each_role() -> None:
    assert [container(one)["args"] for one in DEPLOYMENTS] == [["window"], ["worker"]]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: one["metadata"]["name"])
class TestADeployment:
    def test_is_started_again_only_where_it_is_dead_and_called_ready_only_where_it_works(
        self, deployment: dict[str, Any]
    ) -> None:
        inside = container(deployment)
        probes = {name: inside[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
        assert probes == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}

    def test_listens_where_it_is_asked(self, deployment: dict[str, Any]) -> None:
        inside = container(deployment)
        [port] = inside["ports"]
        [settings] = [one["data"] for one in MANIFESTS if one["kind"] == "ConfigMap"]
        section = {"window": "WINDOW_AGENT", "worker": "WORKER"}[inside["name"]]
        assert settings[f"AEWATCH_{section}__LISTEN"] == f"0.0.0.0:{port['containerPort']}"
        assert inside["livenessProbe"]["httpGet"]["port"] == port["name"]

    def test_runs_without_rights_it_does_not_need(self, deployment: dict[str, Any]) -> None:
        pod, inside = deployment["spec"]["template"]["spec"], container(deployment)
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        assert inside["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert inside["resources"]["limits"]["memory"]

    def test_finds_its_settings_and_its_own_pods(self, deployment: dict[str, Any]) -> None:
        names = {(one["kind"], one["metadata"]["name"]) for one in MANIFESTS}
        for source in container(deployment)["envFrom"]:
            [(kind, reference)] = source.items()
            assert ({"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind], reference["name"]) in names
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels


def test_every_setting_in_them_is_one() -> None:
    from deploy.settings import Settings

    for manifest in MANIFESTS:
        for name in {**manifest.get("data", {}), **manifest.get("stringData", {})}:
            table, _, field = name.removeprefix("AEWATCH_").lower().partition("__")
            section = Settings.model_fields[table].annotation
            assert field in section.model_fields, name
