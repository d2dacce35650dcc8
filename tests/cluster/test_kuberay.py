"""The KubeRay manifests are accepted by KubeRay's own definitions, equal each other, and run nothing as root."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import crds
import pytest
import yaml
from click.testing import CliRunner

from unet_batch.cli.main import cli
from unet_batch.spec import LimitsSpec

FOLDER = crds.ROOT / "cluster" / "kuberay"
CLUSTER, JOB, NIGHTLY = (
    yaml.safe_load((FOLDER / f"{n}.yaml").read_text()) for n in ("raycluster", "rayjob", "nightly")
)
KINDS = {"rayclusters": CLUSTER, "rayjobs": JOB, "raycronjobs": NIGHTLY}
HAVE_CRDS = pytest.mark.skipif(
    not (crds.folder() / "ray.io_rayjobs.yaml.gz").exists(),
    reason=f"KubeRay's definitions are not in {crds.folder()}; name their folder in UNET_BATCH_KUBERAY_CRDS",
)
Json = dict[str, Any]


@pytest.fixture(scope="module")
def schemas() -> dict[str, Json]:
    return {plural: crds.schema(plural) for plural in KINDS}


def pods() -> dict[str, Json]:
    """The four kinds of pods, by their component."""
    spec = JOB["spec"]
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    templates = [spec["rayClusterSpec"]["headGroupSpec"]["template"], spec["submitterPodTemplate"]]
    templates += [group["template"] for group in groups]
    return {t["metadata"]["labels"]["app.kubernetes.io/component"]: t["spec"] for t in templates}


PODS = pytest.mark.parametrize("component", ["head", "submitter", "decode", "gpu"])


# What KubeRay accepts --------------------------------------------------------------------------------------------


@pytest.mark.slow
@HAVE_CRDS
@pytest.mark.parametrize("plural", KINDS)
def test_a_manifest_is_what_the_definition_says(schemas, plural):
    """No unknown field, no wrong type, no name twice in a list of named things."""
    assert crds.problems(KINDS[plural], schemas[plural]) == []


MISTAKES = {
    "a misspelt key of the job": (("backofflimit",), 1),
    "a misspelt key of a pod": (("rayClusterSpec", "headGroupSpec", "template", "spec", "securitycontext"), {}),
    "a misspelt key deep inside": (
        ("rayClusterSpec", "headGroupSpec", "template", "spec", "securityContext", "runAsNonroot"),
        True,
    ),
    "a word for a number": (("ttlSecondsAfterFinished",), "soon"),
    "a mode that is none": (("rayClusterSpec", "authOptions", "mode"), "tokens"),
    "a quantity that is none": (("submitterPodTemplate", "spec", "overhead"), {"cpu": "two"}),
}


@HAVE_CRDS
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused(schemas, mistake):
    """The check can fail: each of these is what an API server would refuse, and nothing else is."""
    path, value = MISTAKES[mistake]
    manifest = json.loads(json.dumps(JOB))  # without YAML's aliases, or one change would be three
    node = manifest["spec"]
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert len(crds.problems(manifest, schemas["rayjobs"])) == 1


@HAVE_CRDS
def test_a_variable_set_twice_is_refused(schemas):
    """Keyed lists hold a key once; JSON Schema alone would let it pass."""
    manifest = json.loads(json.dumps(CLUSTER))
    container = manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]
    [problem] = crds.problems(manifest, schemas["rayclusters"])
    assert "('A',) twice" in problem


def test_what_the_operator_checks_itself_holds():
    """Rules that no schema holds: bounds in both directions, names short enough for services, a version for tokens."""
    for group in CLUSTER["spec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert CLUSTER["spec"]["rayVersion"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,46}", CLUSTER["metadata"]["name"])
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,35}", NIGHTLY["metadata"]["name"])
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,41}", JOB["metadata"]["generateName"])
    assert re.fullmatch(r"(\S+ ){4}\S+", NIGHTLY["spec"]["schedule"])
    assert "TZ" not in NIGHTLY["spec"]["schedule"]


# One cluster, three times ----------------------------------------------------------------------------------------


def test_the_night_runs_what_the_job_runs():
    """A run that worked by hand works at night."""
    assert NIGHTLY["spec"]["jobTemplate"] == JOB["spec"]


def test_the_standing_cluster_is_the_jobs_cluster():
    """What was tried out by day is what runs at night."""
    assert CLUSTER["spec"] == JOB["spec"]["rayClusterSpec"]


def test_versions_are_those_of_the_package_and_its_pins():
    """Ray's version is the pinned one; images carry the package's version; nothing is `latest`."""
    pins = (crds.ROOT / "constraints.txt").read_text()
    version = tomllib.loads((crds.ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nray=={CLUSTER['spec']['rayVersion']}\n" in pins
    images = {c["image"] for pod in pods().values() for c in pod["containers"]}
    assert images == {f"unet-batch:{version}-cpu", f"unet-batch:{version}-gpu"}


def test_the_entry_point_is_a_command_of_this_package():
    """Its options exist, and it reads the job file that the head mounts."""
    name, command, path, *options = JOB["spec"]["entrypoint"].split()
    assert (name, command) == ("unet-batch", "run")
    known = {option for p in cli.commands[command].params for option in p.opts}
    assert {o for o in options if o.startswith("--")} <= known
    [mount] = [m for m in pods()["head"]["containers"][0]["volumeMounts"] if path.startswith(m["mountPath"] + "/")]
    assert mount["readOnly"]
    result = CliRunner().invoke(cli, ["run", "/nowhere/job.yaml", *options])
    assert "nowhere" in str(result.exception)


def test_an_attempt_outlasts_the_leases_of_the_one_before():
    """The next attempt runs on other nodes, where the dead process cannot be looked for."""
    words = JOB["spec"]["entrypoint"].split()
    assert float(words[words.index("--wait") + 1]) > LimitsSpec().lease_s
    assert JOB["spec"]["backoffLimit"] > 0


# What pods may do -------------------------------------------------------------------------------------------------


@PODS
def test_no_pod_runs_as_root_or_may_become_it(component):
    """User 1000, no capability, no new privileges, the default system-call filter."""
    pod = pods()[component]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@PODS
def test_no_pod_sees_the_host_or_the_kubernetes_api(component):
    """No host namespace or path, no token of a service account, no volume that outlives the pod."""
    pod = pods()[component]
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"} & set(pod)
    assert {kind for volume in pod["volumes"] for kind in volume} - {"name"} <= {"emptyDir", "configMap"}
    assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume)


@PODS
def test_requests_equal_limits(component):
    """What Ray counts is what the pod has, and no neighbour can take it."""
    for container in pods()[component]["containers"]:
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["limits"])


@pytest.mark.parametrize("component", ["head", "decode", "gpu"])
def test_ray_nodes_say_when_they_are_ready(component):
    """By Ray's agent, whose health path asks for no token."""
    agent = importlib.util.find_spec("ray.dashboard.http_server_agent")
    open_paths = Path(agent.origin).read_text()
    [container] = pods()[component]["containers"]
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == 52365
        assert container[probe]["httpGet"]["path"] in open_paths


def test_secrets_are_named_and_never_written():
    """No manifest holds a value of a variable: secrets come from a Secret, the token from KubeRay."""
    for path in FOLDER.glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            assert document["kind"] != "Secret"
            assert "value" not in {key for node in nodes(document) if "name" in node for key in node}
    assert JOB["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_spot_is_preferred_for_workers_and_forbidden_for_the_head():
    """Losing a worker costs the units in flight on it; losing the head ends the attempt."""
    for component in ("decode", "gpu"):
        terms = pods()[component]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        liked = {(e["key"], *e["values"]) for t in terms for e in t["preference"]["matchExpressions"]}
        [term] = pods()["head"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        assert {(e["key"], *e["values"]) for e in term["matchExpressions"] if e["operator"] == "NotIn"} == liked
        tolerated = {(t["key"], t["value"]) for t in pods()[component]["tolerations"] if t["operator"] == "Equal"}
        assert tolerated
        assert tolerated <= liked
    assert "tolerations" not in pods()["head"]


def test_only_the_gpu_group_asks_for_gpus():
    """Decoding needs none."""
    gpus = {name: pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for name, pod in pods().items()}
    assert gpus == {"head": None, "submitter": None, "decode": None, "gpu": "1"}


def nodes(value: Any) -> list[Json]:
    """Every mapping inside a manifest."""
    if isinstance(value, dict):
        return [value, *(n for v in value.values() for n in nodes(v))]
    return [n for v in value for n in nodes(v)] if isinstance(value, list) else []
