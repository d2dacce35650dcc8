"""The NetworkPolicy: who reaches which port of which pod, decided as Kubernetes decides it."""

from __future__ import annotations

import ipaddress
from typing import Any

import crds
import pytest
import yaml

FOLDER = crds.ROOT / "cluster" / "kuberay"
POLICIES = list(yaml.safe_load_all((FOLDER / "networkpolicy.yaml").read_text()))
JOB = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())["spec"]
HERE, ELSEWHERE, OPERATOR, SYSTEM = "scoring", "somebody-elses", "kuberay-system", "kube-system"
Json = dict[str, Any]
Pod = tuple[str, dict[str, str]]
"""Namespace and labels."""


def ours(component: str) -> Pod:
    """A pod of the manifests: their labels, and those that KubeRay adds to Ray's nodes."""
    cluster = JOB["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"], JOB["submitterPodTemplate"]]
    templates += [group["template"] for group in cluster["workerGroupSpecs"]]
    [labels] = [m for t in templates if (m := t["metadata"]["labels"])["app.kubernetes.io/component"] == component]
    if component == "submitter":
        return HERE, labels
    return HERE, {
        **labels,
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": "head" if component == "head" else "worker",
    }


HEAD, DECODE, GPU, SUBMITTER = map(ours, ("head", "decode", "gpu", "submitter"))
KUBERAY: Pod = (OPERATOR, {"app.kubernetes.io/name": "kuberay-operator"})
DNS: Pod = (SYSTEM, {"k8s-app": "kube-dns"})
NEIGHBOUR: Pod = (HERE, {"app": "web"})
IMPOSTORS: list[Pod] = [
    NEIGHBOUR,
    (ELSEWHERE, {"app": "web"}),
    (ELSEWHERE, HEAD[1]),  # our labels, in another namespace
    (ELSEWHERE, SUBMITTER[1]),
    (ELSEWHERE, KUBERAY[1]),
    (OPERATOR, {"app": "web"}),
    (HERE, {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}),  # somebody else's Ray
]


def admits(selector: Json | None, labels: dict[str, str]) -> bool:
    return selector is None or selector["matchLabels"].items() <= labels.items()


def peer_matches(peer: Json, other: Pod | str) -> bool:
    if isinstance(other, str):
        block = peer.get("ipBlock", {"cidr": "0.0.0.0/32"})
        address = ipaddress.ip_address(other)
        shut = any(address in ipaddress.ip_network(net) for net in block.get("except", ()))
        return address in ipaddress.ip_network(block["cidr"]) and not shut
    if "ipBlock" in peer:
        return False
    namespace, labels = other
    where = peer.get("namespaceSelector")
    # Without a namespaceSelector a peer is in the policy's own namespace.
    right_place = namespace == HERE if where is None else admits(where, {"kubernetes.io/metadata.name": namespace})
    return right_place and admits(peer.get("podSelector"), labels)


def allowed(direction: str, pod: Pod, other: Pod | str, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies let traffic pass: any rule of any policy that selects the pod; all where none selects it."""
    mine = [
        p["spec"]
        for p in POLICIES
        if pod[0] == HERE and admits(p["spec"]["podSelector"], pod[1]) and direction in p["spec"]["policyTypes"]
    ]
    side = "from" if direction == "Ingress" else "to"
    return not mine or any(
        ("ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"])
        and any(peer_matches(peer, other) for peer in rule[side])
        for policy in mine
        for rule in policy.get(direction.lower(), ())
    )


def passes(source: Pod, target: Pod, port: int) -> bool:
    """Both ends must agree."""
    return allowed("Egress", source, target, port) and allowed("Ingress", target, source, port)


@pytest.mark.parametrize("impostor", IMPOSTORS, ids=str)
@pytest.mark.parametrize("port", [22, 6379, 8076, 8265, 10001, 52365])
def test_nobody_else_reaches_a_node(impostor, port):
    """Not from this namespace, not from another, not with borrowed labels."""
    for node in (HEAD, DECODE, GPU, SUBMITTER):
        assert not passes(impostor, node, port)


def test_nodes_reach_each_other_on_any_port():
    """Ray chooses ports of its own."""
    for source in (HEAD, DECODE, GPU):
        for target in (HEAD, DECODE, GPU):
            assert passes(source, target, 6379)
            assert passes(source, target, 41233)


@pytest.mark.parametrize("caller", [SUBMITTER, KUBERAY], ids=["submitter", "operator"])
def test_submitter_and_operator_reach_the_dashboards_port_and_no_other(caller):
    """Jobs are submitted and watched there; 10001 (Ray's client) and 6379 would be ways around it."""
    assert passes(caller, HEAD, 8265)
    for target, port in ((HEAD, 6379), (HEAD, 10001), (HEAD, 52365), (DECODE, 8265), (GPU, 8265)):
        assert not passes(caller, target, port)


def test_nobody_reaches_a_submitter():
    """It only asks."""
    assert not any(passes(source, SUBMITTER, 8265) for source in (HEAD, DECODE, KUBERAY, NEIGHBOUR))


def test_names_are_resolved():
    """DNS by the cluster's service, and by the address of a node's cache."""
    for pod in (HEAD, DECODE, GPU, SUBMITTER):
        for protocol in ("UDP", "TCP"):
            assert allowed("Egress", pod, DNS, 53, protocol)
            assert allowed("Egress", pod, "169.254.20.10", 53, protocol)


def test_object_stores_are_reached_by_https_only():
    """443 outside; nothing else leaves the cluster."""
    for pod in (HEAD, DECODE, GPU):
        assert allowed("Egress", pod, "52.219.75.1", 443)
        assert not any(allowed("Egress", pod, "52.219.75.1", port) for port in (22, 25, 80, 9000))
    assert not allowed("Egress", SUBMITTER, "52.219.75.1", 443)


@pytest.mark.parametrize("address", ["169.254.169.254", "169.254.170.23"])
def test_the_nodes_own_credentials_are_out_of_reach(address):
    """The metadata service of a node would give its role to whoever runs code in a pod."""
    for pod in (HEAD, DECODE, GPU, SUBMITTER):
        assert not any(allowed("Egress", pod, address, port) for port in (80, 443, 988))


def test_a_policy_has_the_fields_of_its_version_only():
    """No CustomResourceDefinition tells them; a misspelt key would be dropped in silence, and open everything."""
    for policy in POLICIES:
        assert set(policy) == {"apiVersion", "kind", "metadata", "spec"}
        assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
        assert set(policy["spec"]) <= {"podSelector", "policyTypes", "ingress", "egress"}
        assert policy["spec"]["podSelector"]["matchLabels"]
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction, ()):
                assert {side} <= set(rule) <= {side, "ports"}
                for peer in rule[side]:
                    assert peer
                    assert set(peer) <= {"podSelector", "namespaceSelector", "ipBlock"}
                    assert all(set(v) == {"matchLabels"} for k, v in peer.items() if k != "ipBlock")
                for port in rule.get("ports", ()):
                    assert set(port) == {"protocol", "port"}
