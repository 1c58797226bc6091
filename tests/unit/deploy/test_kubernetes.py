"""The Kubernetes manifests: valid, consistent with the server they start, and sized by its L1."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from engine import GIB
from service import __version__, assets
from service.__main__ import main
from tests.support.server import ROOT
from tests.unit.deploy import sizing

KUBERNETES = ROOT / "config" / "deploy" / "kubernetes"
VARIANTS = ("node", "sidecar")
OLDEST, NEWEST = "1.29", "1.37"
"""From the first with sidecar containers to the newest that the validator knows."""

Manifest = dict[str, Any]


def manifests(variant: str) -> list[Manifest]:
    """What `kubectl apply -k` sends."""
    folder = KUBERNETES / variant
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    files = [folder / name for name in kustomization["resources"]]
    assert {*files, folder / "kustomization.yaml"} == set(folder.iterdir()), "a file that nothing applies, or none"
    return [manifest for file in files for manifest in yaml.safe_load_all(file.read_text())]


def of_kind(variant: str, *kinds: str) -> Manifest:
    [found] = [manifest for manifest in manifests(variant) if manifest["kind"] in kinds]
    return found


def pod(variant: str) -> Manifest:
    template: Manifest = of_kind(variant, "DaemonSet", "Deployment")["spec"]["template"]
    return template


def server(variant: str) -> Manifest:
    """The container that runs kvkeep."""
    spec = pod(variant)["spec"]
    [found] = [each for each in (*spec.get("initContainers", []), *spec["containers"]) if each["name"] == "kvkeep"]
    return dict(found)


def config_text(variant: str) -> str:
    text: str = of_kind(variant, "ConfigMap")["data"]["kvkeep.yaml"]
    return text


def l1_size(variant: str) -> int:
    return sizing.largest_l1(yaml.safe_load(config_text(variant)))


def volumes(variant: str) -> dict[str, Manifest]:
    """By the place where kvkeep sees them."""
    by_name = {volume["name"]: volume for volume in pod(variant)["spec"]["volumes"]}
    return {mount["mountPath"]: by_name[mount["name"]] for mount in server(variant)["volumeMounts"]}


def readme_yaml() -> Manifest:
    [block] = re.findall(r"```yaml\n(.*?)```", (KUBERNETES / "README.md").read_text(), re.DOTALL)
    return dict(yaml.safe_load(block))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_manifest_is_valid(variant: str, version: str) -> None:
    for manifest in manifests(variant):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_configuration_is_accepted(variant: str, tmp_path: Path) -> None:
    file = tmp_path / "kvkeep.yaml"
    file.write_text(config_text(variant))
    assert main(["check-config", str(file)]) == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_configuration_with_tokens_is_accepted(variant: str, tmp_path: Path) -> None:
    """The commented lines, with the comment signs taken away and files in place of the mounted Secret."""
    (tmp_path / "operator").write_text("0123456789abcdef" * 4)
    (tmp_path / "reader").write_text("fedcba9876543210" * 4)
    for token in tmp_path.iterdir():
        token.chmod(stat.S_IRUSR | stat.S_IRGRP)
    text = re.sub(r"# (tokens:|  - \{)", r"\1", config_text(variant))
    file = tmp_path / "kvkeep.yaml"
    file.write_text(text.replace("/run/secrets/kvkeep", str(tmp_path)))
    assert yaml.safe_load(text)["http"]["tokens"]
    assert main(["check-config", str(file)]) == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_server_reads_the_mounted_files(variant: str) -> None:
    places = volumes(variant)
    assert server(variant)["args"] == ["serve", "--config", "/etc/kvkeep/kvkeep.yaml"]
    assert places["/etc/kvkeep"]["configMap"]["name"] == of_kind(variant, "ConfigMap")["metadata"]["name"]
    assert places["/run/secrets/kvkeep"]["secret"]["optional"] is True
    # A file by itself would never change when the ConfigMap does.
    assert not any("subPath" in mount for mount in server(variant)["volumeMounts"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_image_is_of_this_version(variant: str) -> None:
    assert server(variant)["image"] == f"kvkeep:{__version__}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_probes_ask_operations_that_exist(variant: str) -> None:
    paths = yaml.load(assets.openapi_path().read_text(), yaml.CSafeLoader)["paths"]
    probes = {name: probe for name, probe in server(variant).items() if name.endswith("Probe")}
    asked = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    expected = {"startupProbe": "/api/healthcheck", "livenessProbe": "/api/livez", "readinessProbe": "/api/readyz"}
    # The readiness of a sidecar would be that of the engine.
    assert asked == (expected if variant == "node" else {k: v for k, v in expected.items() if k != "readinessProbe"})
    assert [path for path in asked.values() if path not in paths] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_ports_are_the_servers_defaults(variant: str) -> None:
    defaults = yaml.safe_load((ROOT / "config" / "default.yaml").read_text())
    ports = {port["name"].removeprefix("kvkeep-"): port["containerPort"] for port in server(variant)["ports"]}
    # In a pod with its engine the data plane stays on loopback, so no port of the pod leads to it.
    data = {"data": defaults["server"]["port"]} if variant == "node" else {}
    assert ports == {**data, "http": defaults["http"]["port"]}
    assert "server" not in yaml.safe_load(config_text(variant)) or variant == "node"


@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_follows_from_l1(variant: str) -> None:
    resources = server(variant)["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert sizing.quantity(resources["limits"]["memory"]) == sizing.memory(l1_size(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_patience_of_the_start_follows_from_l1(variant: str) -> None:
    probe = server(variant)["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] == sizing.start_seconds(l1_size(variant))


def test_the_grace_of_the_stop_follows_from_l1() -> None:
    assert pod("node")["spec"]["terminationGracePeriodSeconds"] == sizing.stop_seconds(l1_size("node"))
    for_the_engine = 30
    needed = for_the_engine + sizing.stop_seconds(l1_size("sidecar"))
    assert pod("sidecar")["spec"]["terminationGracePeriodSeconds"] == needed


def test_the_pods_own_shared_memory_follows_from_l1() -> None:
    volume = volumes("sidecar")["/dev/shm"]["emptyDir"]
    assert volume["medium"] == "Memory"
    assert sizing.quantity(volume["sizeLimit"]) == sizing.shm(l1_size("sidecar"))


def test_the_readme_tells_the_same_sizes() -> None:
    rows = [line.strip("| ").split(" | ") for line in (KUBERNETES / "README.md").read_text().splitlines()]
    table = {row[0]: row[2:] for row in rows if len(row) == 6}
    sizes = [int(head.removesuffix(" GiB")) * GIB for head in table.pop("value")]
    memory, volume, start, stop = table.values()
    assert [sizing.quantity(cell) for cell in memory] == [sizing.memory(size) for size in sizes]
    assert [sizing.quantity(cell) for cell in volume] == [sizing.shm(size) for size in sizes]
    assert [sizing.seconds(cell.replace(" ", "")) for cell in start] == [sizing.start_seconds(size) for size in sizes]
    assert [sizing.seconds(cell.replace(" ", "")) for cell in stop] == [sizing.stop_seconds(size) for size in sizes]


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_runs_with_more_rights_than_it_needs(variant: str) -> None:
    spec = pod(variant)["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostIPC", "hostNetwork", "hostPID"} & spec.keys()
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_only_the_shared_memory_of_the_node_is_the_hosts() -> None:
    host = {volume["hostPath"]["path"] for volume in pod("node")["spec"]["volumes"] if "hostPath" in volume}
    assert host == {"/dev/shm"}
    assert [volume for volume in pod("sidecar")["spec"]["volumes"] if "hostPath" in volume] == []


def test_the_engine_beside_it_sees_the_same_memory() -> None:
    [engine] = pod("sidecar")["spec"]["containers"]
    shared = {"name": "shm", "mountPath": "/dev/shm"}
    assert shared in engine["volumeMounts"]
    assert shared in server("sidecar")["volumeMounts"]
    assert "runAsUser" not in {**engine["securityContext"], **server("sidecar")["securityContext"]}


def test_an_engine_of_the_readme_fits_the_daemonset() -> None:
    engine, ours = readme_yaml(), pod("node")["spec"]
    assert engine["spec"]["securityContext"]["runAsUser"] == ours["securityContext"]["runAsUser"]
    assert engine["spec"]["volumes"] == [volumes("node")["/dev/shm"]]
    [from_engines, _] = of_kind("node", "NetworkPolicy")["spec"]["ingress"]
    assert from_engines["from"][0]["podSelector"]["matchLabels"] == engine["metadata"]["labels"]
    service = next(each for each in manifests("node") if each["kind"] == "Service")
    address = f"tcp://{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert address in engine["spec"]["containers"][0]["args"][1]
    assert service["spec"]["internalTrafficPolicy"] == "Local"


@pytest.mark.parametrize("variant", VARIANTS)
def test_selectors_find_the_pods(variant: str) -> None:
    labels = pod(variant)["metadata"]["labels"]
    for manifest in manifests(variant):
        spec = manifest.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector") or {}
        assert selector.get("matchLabels", selector).items() <= labels.items(), manifest["kind"]


def test_ports_of_services_and_policies_are_named_by_the_pod() -> None:
    names = {port["name"] for port in server("node")["ports"]}
    for manifest in manifests("node"):
        if manifest["kind"] == "Service":
            assert {port["targetPort"] for port in manifest["spec"]["ports"]} <= names
    policy = of_kind("node", "NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for rule in policy for port in rule["ports"]} == names
