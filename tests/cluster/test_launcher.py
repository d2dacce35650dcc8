"""The launcher's files: valid for Ray, closed to the public, spot first, and asked for the token."""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from small_cluster import kill_session

ROOT = Path(__file__).parents[2]
FILES = {name: yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text()) for name in ("aws", "gcp")}
BOTH = pytest.mark.parametrize("name", FILES)
WORLD = {"0.0.0.0/0", "::/0"}
Json = dict[str, Any]


def filled(name: str) -> Json:
    """The file as Ray fills it in before it is used."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(copy.deepcopy(FILES[name]))


# Ray takes it -----------------------------------------------------------------------------------------------------


@BOTH
def test_ray_accepts_the_file(name):
    """By its own schema and its own checks, as `ray up` makes them."""
    from ray.autoscaler._private.util import validate_config

    validate_config(filled(name))


@BOTH
@pytest.mark.parametrize("path", [("idle_timeout_minute",), ("available_node_types", "head", "max_worker")])
def test_ray_refuses_a_misspelt_key(name, path):
    """The check can fail."""
    from ray.autoscaler._private.util import validate_config

    config = filled(name)
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = 1
    with pytest.raises(jsonschema.ValidationError, match=path[-1]):
        validate_config(config)


@BOTH
def test_every_mounted_file_is_in_the_checkout(name):
    """What the set-up commands install from, and the token, which is not."""
    mounts = dict(FILES[name]["file_mounts"])
    assert mounts.pop("/home/ubuntu/.ray/auth_token") == "~/.ray/auth_token"
    assert mounts
    for remote, local in mounts.items():
        assert remote.removeprefix("/home/ubuntu/unet-batch/") == local
        assert (ROOT / local).exists()


def test_the_two_files_differ_in_the_cloud_only():
    """Node types, bounds and the way Ray is started are the same."""
    one, other = (copy.deepcopy(FILES[n]) for n in FILES)
    for config in (one, other):
        for key in ("provider", "auth", "setup_commands", "head_setup_commands"):
            del config[key]
        for node_type in config["available_node_types"].values():
            del node_type["node_config"]
    assert one == other


# Closed to the public ---------------------------------------------------------------------------------------------


@BOTH
def test_no_node_has_a_public_address(name):
    """Nodes talk by internal addresses, and people come through the cloud's own door."""
    config = FILES[name]
    assert config["provider"]["use_internal_ips"] is True
    assert config["auth"]["ssh_proxy_use_node_id"] is True
    for node_type in config["available_node_types"].values():
        for interface in node_type["node_config"].get("networkInterfaces", ()):
            assert set(interface) == {"subnetwork"}


@BOTH
def test_every_start_of_ray_asks_for_the_token(name):
    """On the head and on workers; and the shells of `ray exec` have it."""
    starts = [c for key in ("head", "worker") for c in FILES[name][f"{key}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all(c.startswith("export RAY_AUTH_MODE=token;") for c in starts)
    assert any("RAY_AUTH_MODE=token" in c and ".bashrc" in c for c in FILES[name]["setup_commands"])


@BOTH
def test_the_dashboard_answers_on_the_loopback_only(name):
    """It and the job server behind it run what they are sent."""
    assert "--dashboard-host=127.0.0.1" in FILES[name]["head_start_ray_commands"][1]
    assert not any("0.0.0.0" in c for key in FILES[name] if key.endswith("commands") for c in FILES[name][key])


@pytest.fixture
def ec2(tmp_path, monkeypatch) -> Iterator[Json]:
    """aws.yaml for an account in moto, whose group lets its own members in and nobody else."""
    moto = pytest.importorskip("moto")
    import boto3

    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(variable, "testing")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps the private key it makes in ~/.ssh
    (tmp_path / ".ssh").mkdir()
    config = filled("aws")
    with moto.mock_aws():
        client = boto3.client("ec2", region_name=config["provider"]["region"])
        subnet = client.describe_subnets()["Subnets"][0]
        group = client.create_security_group(GroupName="closed", Description="own members", VpcId=subnet["VpcId"])
        image = client.describe_images()["Images"][0]["ImageId"]
        real = {"SubnetIds": [subnet["SubnetId"]], "SecurityGroupIds": [group["GroupId"]], "ImageId": image}
        for node_type in config["available_node_types"].values():
            node_type["node_config"].update({key: real[key] for key in real if key in node_type["node_config"]})
        yield config


@pytest.mark.slow
def test_on_ec2_nothing_is_open_to_the_world(ec2):
    """Ray adds no rule to the account's groups; left to itself it opens port 22."""
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws

    def open_ports() -> set[int]:
        groups = boto3.client("ec2", region_name=ec2["provider"]["region"]).describe_security_groups()
        rules = [rule for group in groups["SecurityGroups"] for rule in group["IpPermissions"]]
        return {rule.get("FromPort", -1) for rule in rules if WORLD & {r["CidrIp"] for r in rule["IpRanges"]}}

    bootstrap_aws(ec2)
    assert open_ports() == set()
    for node_type in ec2["available_node_types"].values():
        del node_type["node_config"]["SecurityGroupIds"]
    bootstrap_aws(ec2)
    assert open_ports() == {22}


@pytest.mark.slow
def test_on_ec2_spot_types_are_spot_instances(ec2):
    """Started by the provider of Ray; the others are on demand, and all give credentials to session tokens only."""
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = bootstrap_aws(ec2)
    iam = boto3.client("iam")
    profiles = {t["node_config"]["IamInstanceProfile"]["Name"] for t in config["available_node_types"].values()}
    for profile in profiles:
        iam.create_instance_profile(InstanceProfileName=profile)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node_type in config["available_node_types"].items():
        provider.create_node(copy.deepcopy(node_type["node_config"]), {"type": name}, 1)
    client = boto3.client("ec2", region_name=config["provider"]["region"])
    instances = [i for r in client.describe_instances()["Reservations"] for i in r["Instances"]]
    spot = {t["Value"]: i.get("InstanceLifecycle") for i in instances for t in i["Tags"] if t["Key"] == "type"}
    assert spot == {
        "head": None,
        "decode-on-demand": None,
        "gpu-on-demand": None,
        "decode-spot": "spot",
        "gpu-spot": "spot",
    }
    for node_type in config["available_node_types"].values():
        assert node_type["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


@pytest.mark.ray
def test_the_heads_start_command_lets_nobody_in_without_the_token(tmp_path):
    """The very command of the file, but for its ports: a driver without the token, or with another, is refused."""
    [command] = [c for c in FILES["aws"]["head_start_ray_commands"] if "ray start" in c]
    command = command.replace("--port=6379 --object-manager-port=8076", "--port=0").partition(" --autoscaling")[0]
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        places = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        environment = {**os.environ, **places, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
        subprocess.run(["ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
        said = tmp_path / "said.txt"
        options = (
            f"--include-dashboard=false --num-cpus=1 --object-store-memory=100000000 --temp-dir={temporary} --block"
        )
        head = subprocess.Popen(
            ["bash", "-c", f"{command.replace('; ray start', '; exec ray start')} {options}"],
            env={k: v for k, v in environment.items() if k != "RAY_AUTH_MODE"},
            stdout=said.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            address = ""
            ends = time.monotonic() + 60
            while not address and head.poll() is None and time.monotonic() < ends:
                time.sleep(0.2)
                address = next(iter(re.findall(r"--address='([^']+)'", said.read_text())), "")
            assert address, said.read_text()
            drivers = [
                environment,
                {**environment, "RAY_AUTH_TOKEN": "x"},
                {**environment, "RAY_AUTH_MODE": "disabled"},
            ]
            with ThreadPoolExecutor() as at_once:
                assert list(at_once.map(partial(joins, address), drivers)) == ["joined", "refused", "refused"]
        finally:
            kill_session(head.pid)
            head.wait()


def joins(address: str, environment: dict[str, str]) -> str:
    """`joined` or `refused`, from a driver in a process of its own."""
    script = (
        "import ray, sys\n"
        "try:\n"
        "    ray.init(address=sys.argv[1], log_to_driver=False)\n"
        "    print('joined')\n"
        "except ConnectionError:\n"
        "    print('refused')\n"
    )
    driver = subprocess.run(
        [sys.executable, "-c", script, address],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return driver.stdout.strip() or driver.stderr


# Spot first -------------------------------------------------------------------------------------------------------


def launched(config: Json, cpus: int, gpus: int, *, gone: tuple[str, ...] = ()) -> Counter[str]:
    """Nodes that Ray's autoscaler would start for a request, by type. gone: types that just could not be had."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint

    wanted = ask_for_nodes().bundles(cpus, gpus)
    settings = AutoscalingConfig(copy.deepcopy(config), skip_content_hash=True)
    constraint = ClusterResourceConstraint(
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(b) for b in wanted])
    )
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=settings.get_node_type_configs(),
            max_num_nodes=settings.get_max_num_nodes(),
            cluster_resource_constraints=[constraint],
            recoverable_resource_availabilities=dict.fromkeys(gone, 0.0),
        )
    )
    return Counter({launch.instance_type: launch.count for launch in reply.to_launch})


def ask_for_nodes() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("ask_for_nodes", ROOT / "cluster" / "ask_for_nodes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@BOTH
def test_spot_nodes_are_asked_for_first(name):
    """Ray's own scheduler, given the file: 32 cores and 2 GPUs are GPU nodes and the decode nodes that are missing."""
    assert launched(FILES[name], 32, 2) == {"gpu-spot": 2, "decode-spot": 2}


@BOTH
def test_on_demand_nodes_come_where_spot_nodes_cannot_be_had(name):
    """A type whose launch just failed ranks below its twin."""
    assert launched(FILES[name], 32, 2, gone=("gpu-spot", "decode-spot")) == {"gpu-on-demand": 2, "decode-on-demand": 2}
    assert launched(FILES[name], 32, 2, gone=("gpu-spot",)) == {"gpu-on-demand": 2, "decode-spot": 2}


@BOTH
def test_decoding_alone_takes_no_gpu(name):
    """GPU nodes are for sessions."""
    assert launched(FILES[name], 48, 0) == {"decode-spot": 3}


@BOTH
def test_a_request_beyond_the_bounds_starts_nothing(name):
    """max_workers is the upper bound of the bill."""
    assert launched(FILES[name], 10, 9) == {}
    assert FILES[name]["max_workers"] == 8


@BOTH
def test_an_idle_cluster_is_its_head(name):
    """No type has nodes that always run, and idle ones end."""
    types = FILES[name]["available_node_types"]
    assert all(not t.get("min_workers") for t in types.values())
    assert 0 < FILES[name]["idle_timeout_minutes"] <= 30
    assert types["head"] == {**types["head"], "resources": {"CPU": 0}, "max_workers": 0}
    assert launched(FILES[name], 0, 0) == {}
