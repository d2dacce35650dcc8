"""Worker processes: which worker gets which unit, the cost of a death or a failed start; none outlives the run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import late
import poison
import pytest
import unwilling
from forked import Forked, processes_of_session

from unet_batch.errors import Incomplete, JobError, ProviderMissing, UnetBatchError
from unet_batch.job import process_executor
from unet_batch.job.process_executor import ProcessExecutor
from unet_batch.job.processes import child
from unet_batch.job.processes.worker_process import WorkerProcess
from unet_batch.planning.plan import plan_partition, units
from unet_batch.planning.survey import archive_partitions, window_of
from unet_batch.worker import faults
from unet_batch.worker.process import Refusal, WorkerSetup
from unet_batch.worker.worker import Settings

pytestmark = pytest.mark.slow

DAY = "2026/11/21"
TESTS = Path(__file__).parents[1]


@pytest.fixture
def made(project, monkeypatch):
    """Makes executors on a project of 24 images in units of 2, and the units; closes them."""
    project.fill(DAY, 24)
    monkeypatch.setattr(process_executor, "cores", lambda: 2)
    executors = []

    def make(*overrides: str, decoder: str = poison.NAME, delay_s: float = 0.0):
        monkeypatch.setenv(poison.DELAY_VARIABLE, str(delay_s))
        monkeypatch.setenv(poison.LOG_VARIABLE, str(project.folder / "decoded.txt"))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS / "job")]))
        prepared = project.prepared(*overrides)
        settings = Settings(
            prepared.job.model_dump_json(), prepared.model.to_json(), prepared.fingerprint, "a-run", decoder=decoder
        )
        executor = ProcessExecutor(settings)
        executors.append(executor)
        [(name, sources)] = archive_partitions(prepared, window_of("all"), keep=True).partitions.items()
        plan = plan_partition(name, sources, fingerprint=prepared.fingerprint, published=None, done=set(), parts=())
        job = prepared.job.model_copy(update={"limits": prepared.job.limits.model_copy(update={"unit_images": 2})})
        return executor, units(plan, job, prepared.fingerprint, workers=1)

    yield make
    for executor in executors:
        executor.close()


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """Says what the first, second, … start of a worker does; returns the file that counts them."""

    def script(*acts: str) -> Path:
        path = tmp_path / "starts"
        path.write_text("\n".join(acts))
        monkeypatch.setenv(unwilling.VARIABLE, str(path))
        return path

    return script


def pids(executor: ProcessExecutor) -> list[int]:
    return [worker.pid for worker in executor._processes if worker.is_alive]


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(holds, timeout_s: float = 60.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def decoded(project) -> Counter[str]:
    log = project.folder / "decoded.txt"
    return Counter(log.read_text().split()) if log.exists() else Counter()


def test_every_unit_has_one_receipt_and_the_processes_outlive_a_pass(made, project):
    """Sessions are opened once for a run, however many passes it has."""
    executor, todo = made()
    first = list(executor.run(todo[:6]))
    known = pids(executor)
    second = list(executor.run(todo[6:]))
    assert Counter(receipt.unit_id for receipt in first + second) == Counter(unit.unit_id for unit in todo)
    assert {receipt.pid for receipt in first + second} <= set(known)  # one may score all before the other is ready
    assert len(known) == 2
    assert pids(executor) == known
    assert set(decoded(project).values()) == {1}


def test_few_units_start_few_processes(made):
    """One unit is scored by one process, however many cores there are."""
    executor, todo = made()
    assert len(list(executor.run(todo[:1]))) == 1
    assert len(pids(executor)) == 1


def test_no_process_takes_a_second_unit_while_another_has_none(made):
    """Two units, two processes: the one that is ready first does not take both."""
    executor, todo = made(delay_s=0.3)
    assert len({receipt.pid for receipt in executor.run(todo[:2])}) == 2


def test_a_worker_that_is_killed_from_outside_costs_no_unit_its_receipt(made, project):
    """kill -9 of one process in the middle: its units have a second try in the same pass, and no image is suspected."""
    executor, todo = made(delay_s=0.1)
    arriving = executor.run(todo)
    found = [next(arriving)]
    os.kill(pids(executor)[0], signal.SIGKILL)
    found += arriving
    assert sorted(receipt.unit_id for receipt in found) == sorted(unit.unit_id for unit in todo)
    assert all(receipt.failure is None for receipt in found)
    assert decoded(project).total() <= 24 + 2 * 2


def test_a_unit_that_kills_two_processes_has_no_receipt_and_the_others_have(made, project):
    """What the caller does with it is the rule of `faults`; its neighbours may be lost with it, and no more."""
    project.put(f"{DAY}/003.png", b"\x89PNG" + poison.CRASH)
    executor, todo = made()
    lost = {unit.unit_id for unit in todo} - {receipt.unit_id for receipt in executor.run(todo)}
    guilty = {unit.unit_id for unit in todo if any("003" in source.uri for source in unit.sources)}
    assert guilty <= lost
    assert len(lost) <= 2


def test_both_workers_killed_at_once_and_again_are_replaced(made):
    executor, todo = made(delay_s=0.1)
    arriving = executor.run(todo)
    found = [next(arriving)]
    for pid in pids(executor):
        os.kill(pid, signal.SIGKILL)
    found += arriving
    assert len(found) == len(todo)


def test_idle_workers_that_died_between_two_passes_are_replaced(made):
    executor, todo = made()
    list(executor.run(todo[:4]))
    for pid in pids(executor):
        os.kill(pid, signal.SIGKILL)
    assert len(list(executor.run(todo[4:]))) == len(todo) - 4


def test_a_stopped_worker_is_ended_when_it_has_said_nothing_for_too_long(made, monkeypatch):
    """SIGSTOP: its own watchdog stands still, too, so the driver looks."""
    executor, todo = made("limits.unit_timeout_s=2", delay_s=0.1)
    arriving = executor.run(todo)
    found = [next(arriving)]
    monkeypatch.setattr(process_executor, "SILENCE_S", 3.0)
    stopped = pids(executor)[0]
    os.kill(stopped, signal.SIGSTOP)
    found += arriving
    assert sorted(receipt.unit_id for receipt in found) == sorted(unit.unit_id for unit in todo)
    assert not lives(stopped)


def test_a_silent_unit_is_told_as_what_it_is_and_its_neighbour_is_scored(made, project):
    """The note comes over the pipe: nothing is put into the store for it."""
    project.put(f"{DAY}/000.png", b"\x89PNG" + poison.HANG)
    executor, todo = made("limits.unit_timeout_s=2", "limits.image_timeout_s=2")
    found = {receipt.unit_id: receipt for receipt in executor.run(todo)}
    assert len(found) == len(todo)
    [guilty] = [unit for unit in todo if any("000" in source.uri for source in unit.sources)]
    failed = {unit_id: receipt.failure for unit_id, receipt in found.items() if receipt.failure is not None}
    assert {unit_id: failure[0] for unit_id, failure in failed.items()} == {guilty.unit_id: faults.SILENT_DECODE}
    assert "000.png" in failed[guilty.unit_id][1]
    assert guilty.sources[found[guilty.unit_id].suspect].uri.endswith("000.png")
    assert not list((project.folder / "out" / "_work").rglob("*.note"))


def test_the_start_of_an_isolated_decoder_is_no_time_of_its_image(made):
    """A slow machine starts it in 4 s; limits that are shorter are for the image."""
    executor, todo = made("limits.unit_timeout_s=0.5", "limits.image_timeout_s=0.5", decoder=late.NAME)
    [receipt] = executor.run([replace(todo[0], isolate=True)])
    assert receipt.failure is None
    assert receipt.ok == len(todo[0].sources)


@pytest.mark.parametrize(
    ("acts", "error", "sentence", "at_most"),
    [
        (["missing"], ProviderMissing, "no worker process can score: no driver on this machine", 2),
        (["raise"], UnetBatchError, "RuntimeError: an unexpected error", 2),
        (["die"], Incomplete, "its process died 3 times before it could score (signal SIGKILL)", 6),
    ],
)
def test_where_no_process_can_start_the_run_ends_with_what_the_first_said(made, starts, acts, error, sentence, at_most):
    counted = starts(*acts)
    executor, todo = made(decoder=unwilling.NAME)
    with pytest.raises(error) as raised:
        list(executor.run(todo))
    assert type(raised.value) is error
    assert sentence in str(raised.value)
    assert unwilling.starts(counted) <= at_most


def test_a_process_that_cannot_start_beside_one_that_can_costs_no_unit_a_try(made, starts):
    """Each unit is scored once, by the one that can; the other is not asked again."""
    counted = starts("fine", "missing")
    executor, todo = made(decoder=unwilling.NAME, delay_s=0.05)
    found = list(executor.run(todo))
    assert [receipt.failure for receipt in found] == [None] * len(todo)
    assert unwilling.starts(counted) == 2


@pytest.mark.parametrize("act", ["away", "die"])
def test_a_start_that_may_succeed_is_tried_again(made, starts, act, tmp_path, monkeypatch):
    """A store that was away, a process that the kernel ended for its memory: later both processes score."""
    (tmp_path / "decoding").mkdir()
    monkeypatch.setenv(unwilling.TOGETHER, str(tmp_path / "decoding"))
    starts("fine", act, "fine")
    executor, todo = made(decoder=unwilling.NAME)
    found = list(executor.run(todo))
    assert [receipt.failure for receipt in found] == [None] * len(todo)
    assert len({receipt.pid for receipt in found}) == 2


def test_a_start_that_hangs_is_ended(made, starts, monkeypatch):
    counted = starts("fine", "hang", "fine")
    executor, todo = made("limits.unit_timeout_s=1", decoder=unwilling.NAME, delay_s=0.6)
    arriving = executor.run(todo)
    found = [next(arriving)]
    monkeypatch.setattr(process_executor, "SILENCE_S", 7.0)
    found += arriving
    assert len(found) == len(todo)
    assert unwilling.starts(counted) == 3


def test_a_machine_without_room_for_a_process_is_one_sentence(made, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(child.subprocess, "Popen", refuse)
    executor, todo = made()
    with pytest.raises(Incomplete, match=r"no more processes can be started on this machine .*temporarily unavailable"):
        list(executor.run(todo))


def test_a_worker_that_prints_very_much_scores_nevertheless(made, monkeypatch, tmp_path):
    """C libraries print about bad images; the text is not read, and no pipe fills up."""
    (tmp_path / "loud.py").write_text(
        "import os\nfrom poison import decode as quiet\n"
        "def decode(*how):\n    os.write(2, b'x' * (1 << 17))\n    return quiet(*how)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    executor, todo = made(decoder="loud:decode")
    assert len(list(executor.run(todo))) == len(todo)


def test_a_pass_that_is_left_early_leaves_its_units_alone(made, project):
    """The next pass is not disturbed by what the one before had begun."""
    executor, todo = made(delay_s=0.2)
    arriving = executor.run(todo)
    next(arriving)
    arriving.close()
    rest = todo[8:]
    found = {receipt.unit_id for receipt in executor.run(rest)}
    assert {unit.unit_id for unit in rest} <= found


def test_close_ends_every_process_soon(made):
    executor, todo = made(delay_s=0.05)
    arriving = executor.run(todo)
    next(arriving)
    known = pids(executor)
    began = time.monotonic()
    executor.close()
    assert time.monotonic() - began < 4
    assert not any(lives(pid) for pid in known)


def test_an_idle_executor_closes_at_once(made):
    executor, todo = made()
    list(executor.run(todo))
    began = time.monotonic()
    executor.close()
    assert time.monotonic() - began < 1


def score_slowly(project, *, delay_s: float) -> Forked:
    """A driver of its own, in units of two images."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        poison.DELAY_VARIABLE: str(delay_s),
        poison.LOG_VARIABLE: str(project.folder / "decoded.txt"),
    }
    words = (TESTS / "job" / "score_slowly.py", "processes", project.folder / "job.yaml", "limits.unit_images=2")
    return Forked(*words, environment=environment, new_session=True)


@pytest.mark.parametrize("at_work", [True, False])
def test_workers_leave_within_seconds_of_a_driver_that_was_killed(project, at_work):
    """kill -9 of the driver alone: its processes find their pipes closed, whether they work or wait."""
    project.fill(DAY, 40)
    driver = score_slowly(project, delay_s=0.2 if at_work else 0)
    until(lambda: len(project.parts()) >= 2)
    workers = [pid for pid in processes_of_session(driver.pid) if pid != driver.pid]
    assert workers
    if not at_work:  # receipts and units are no longer handled
        os.kill(driver.pid, signal.SIGSTOP)
        time.sleep(1.5)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    until(lambda: not any(lives(pid) for pid in workers), timeout_s=8)


def test_driver_and_workers_killed_together_lose_what_was_in_flight_and_no_more(project):
    project.fill(DAY, 40)
    driver = score_slowly(project, delay_s=0.05)
    until(lambda: len(project.parts()) >= 3)
    for pid in processes_of_session(driver.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    driver.wait()
    staged = len(project.parts())
    again = project.run("limits.unit_images=2")
    assert (again.planned, again.published) == (40 - 2 * staged, 1)
    assert decoded(project).total() <= 2 * staged + 2 * 2 * 2
    assert project.verify() == []


def test_an_isolated_decoder_does_not_outlive_its_worker(made, project):
    """A decoder that hangs in its child process is ended with the process that started it."""
    project.put(f"{DAY}/000.png", b"\x89PNG" + poison.HANG)
    executor, todo = made("limits.image_timeout_s=60")
    arriving = executor.run([replace(unit, isolate=True) for unit in todo])
    next(arriving)
    until(lambda: decoded(project)[poison.hash_of(b"\x89PNG" + poison.HANG)])
    children = [pid for pid, words in command_lines(pids(executor)).items() if "decode.isolate" in words]
    assert children
    executor.close()
    until(lambda: not any(lives(pid) for pid in children), timeout_s=5)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("session.providers=[cuda]", "session.providers asks for cuda"),
        ("resources.load_actors=1", "resources.load_actors asks for actors that only load"),
    ],
)
def test_what_only_ray_has_is_refused(made, override, sentence):
    with pytest.raises(JobError, match=sentence):
        made(override)


@pytest.mark.parametrize(
    ("cores", "asked", "workers", "threads"), [(8, None, 8, 1), (8, 2, 2, 4), (1, None, 1, 1), (2, 4, 4, 1)]
)
def test_processes_times_threads_are_the_cores(project, monkeypatch, cores, asked, workers, threads):
    monkeypatch.setattr(process_executor, "cores", lambda: cores)
    prepared = project.prepared(*([] if asked is None else [f"resources.infer_actors={asked}"]))
    settings = Settings(prepared.job.model_dump_json(), prepared.model.to_json(), prepared.fingerprint, "r")
    executor = ProcessExecutor(settings)
    assert executor.workers == workers
    assert WorkerSetup.from_json(executor._processes[0]._setup).threads == threads


def test_what_a_worker_is_told_comes_back_as_it_was(project):
    prepared = project.prepared()
    settings = Settings(
        prepared.job.model_dump_json(),
        prepared.model.to_json(),
        prepared.fingerprint,
        "r",
        members=(b"{}", '{"name": "µ"}'.encode()),
        check_unit=b"{}",
        stop_at_s=1.5,
    )
    setup = WorkerSetup(settings, threads=3)
    assert WorkerSetup.from_json(setup.to_json()) == setup
    refusal = Refusal("session.provider_missing", "no CUDA", may_pass=False)
    assert Refusal.from_json(refusal.to_json()) == refusal


def test_a_worker_that_never_started_can_be_dismissed():
    worker = WorkerProcess(b"{}")
    worker.close_pipe()
    worker.wait(time.monotonic())
    assert not worker.is_alive


def command_lines(parents: list[int]) -> dict[int, str]:
    """Of the children of some processes, by their ids."""
    listed = subprocess.run(["ps", "-eo", "ppid=,pid=,args="], capture_output=True, text=True, check=True).stdout
    found = (line.split(None, 2) for line in listed.splitlines())
    return {int(pid): args for parent, pid, args in found if int(parent) in parents}
