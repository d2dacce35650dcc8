"""Asks the autoscaler of a Ray cluster for nodes, and waits until they are there. Runs on a node of the cluster.

    python cluster/ask_for_nodes.py --cpus 32 --gpus 2     before a run
    python cluster/ask_for_nodes.py --cpus 0 --gpus 0      after it: the request is taken back, and idle nodes end

A run plans its actors from the nodes that are there when it begins, so on an autoscaling cluster somebody has to ask
first. Knows how many cores and GPUs, and nothing of node types, prices and bounds: those are in the launcher's file.
Each GPU is asked for with one core; the other cores of its node count towards --cpus. A request beyond the bounds of
that file brings no node at all.

Exit codes: 0 all there, 2 arguments or no cluster, 3 not all there in time (the request stands). The last line of
stdout is one JSON object.
"""

# ruff: noqa: T201 - a script: what it prints is its result

from __future__ import annotations

import argparse
import json
import logging
import sys
import time

POLL_S = 2.0

Bundles = list[dict[str, int]]


def bundles(cpus: int, gpus: int) -> Bundles:
    """What has to fit into the cluster at once: single cores, and GPUs with a core each."""
    return [{"CPU": 1}] * cpus + [{"CPU": 1, "GPU": 1}] * gpus


def missing(have: dict[str, float], wanted: Bundles) -> dict[str, float]:
    """How many of each resource a cluster lacks; empty when it lacks nothing."""
    total = {name: sum(bundle.get(name, 0) for bundle in wanted) for name in ("CPU", "GPU")}
    return {name: count - have.get(name, 0.0) for name, count in total.items() if count > have.get(name, 0.0)}


def main() -> int:
    """Ask, wait, and say what is missing; returns the exit code."""
    parser = argparse.ArgumentParser(description="Ask the autoscaler for nodes and wait until they are there.")
    parser.add_argument("--cpus", type=int, required=True, help="cores that decode and score")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs that score")
    parser.add_argument("--wait-s", type=float, default=1200.0, help="longest wait (default: 1200)")
    arguments = parser.parse_args()
    if arguments.cpus < 0 or arguments.gpus < 0:
        parser.error("--cpus and --gpus are counts, 0 or more")

    import ray
    from ray.autoscaler.sdk import request_resources

    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        print(f"no cluster to ask: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 2
    wanted = bundles(arguments.cpus, arguments.gpus)
    started = time.monotonic()
    request_resources(bundles=wanted)  # stands until it is replaced, also when this process is gone
    lacking = missing(ray.cluster_resources(), wanted)
    while lacking and time.monotonic() - started < arguments.wait_s:
        print(f"still missing: {lacking}", file=sys.stderr)
        time.sleep(POLL_S)
        lacking = missing(ray.cluster_resources(), wanted)
    waited_s = round(time.monotonic() - started, 1)
    if lacking:
        print(
            f"not all nodes came in {waited_s:.0f} s; `ray status` shows what was tried (capacity, quotas), and the "
            "launcher's file its bounds; the request stands",
            file=sys.stderr,
        )
    print(json.dumps({"missing": lacking, "nodes": sum(node["Alive"] for node in ray.nodes()), "waited_s": waited_s}))
    return 3 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
