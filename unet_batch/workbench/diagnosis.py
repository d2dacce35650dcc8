"""Checks the requirements of a job: stores, model, contract and providers. Makes no lasting changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from unet_batch.archive.window import Window
from unet_batch.decode.sizes import about_reduced_jpeg
from unet_batch.errors import Incomplete, JobError, UnetBatchError
from unet_batch.gate.gate import check_unit, has_references, needed
from unet_batch.planning.plan import plan_partition, units
from unet_batch.planning.prepare import Prepared, new_run_id, prepare
from unet_batch.planning.survey import archive_partitions, nothing_found, surveyed, vanished, window_of
from unet_batch.session.session import Device
from unet_batch.spec import JobSpec
from unet_batch.workbench.doctor import CheckResult
from unet_batch.worker.worker import Settings, build_infer

ANOTHER = "write another --window"


def diagnose_job(job: JobSpec) -> list[CheckResult]:
    """One check result each for model, session, archive and output; after a failed model nothing else is tried."""
    try:
        prepared = prepare(job)
    except UnetBatchError as error:
        return [CheckResult("job model", False, str(error))]
    agreed = f"{job.model.path} agrees with its contract; fingerprint {prepared.fingerprint[:12]}"
    if (reduced := about_reduced_jpeg(prepared.model.contract.input)) is not None:
        agreed = f"{agreed}; {reduced}"
    return [CheckResult("job model", True, agreed), *_tried(prepared)]


def check_job(job: JobSpec, window: Window) -> bool:
    """Open the job's session on this machine and run the gate; False if the gate has nothing to check.

    Raises ModelRefused beyond the tolerances, JobError if the window holds no image, and the errors of opening.
    """
    prepared = prepare(job)
    for partition, sources in archive_partitions(prepared, window, keep=False).partitions.items():
        plan = plan_partition(
            partition, sources, fingerprint=prepared.fingerprint, published=None, done=frozenset(), parts=()
        )
        work = units(plan, prepared.job, prepared.fingerprint, workers=1)
        unit = check_unit(prepared.job, work, proven=prepared.proven)
        build_infer(_settings(prepared, check_unit=unit), Device(threads=1))
        return needed(prepared.job) or has_references(prepared.job, prepared.model_bytes)
    raise JobError(f"the window holds no image of {job.input.uri} to check with: {ANOTHER}")


def _settings(prepared: Prepared, *, check_unit: bytes | None = None) -> Settings:
    members = tuple(member.to_json() for member in prepared.members)
    run_id = new_run_id(prepared.job)
    return Settings(
        prepared.job.model_dump_json(),
        prepared.model.to_json(),
        prepared.fingerprint,
        run_id,
        members=members,
        check_unit=check_unit,
    )


def _tried(prepared: Prepared) -> Iterator[CheckResult]:
    def session() -> str:
        build_infer(_settings(prepared), Device(threads=1))
        return f"{prepared.job.model.engine} opened it on this machine"

    def archive() -> str:
        found = archive_partitions(prepared, window_of(prepared.job.window), keep=False)
        problems = [
            nothing_found(prepared.job, prepared.archive, found),
            vanished(prepared.output, prepared.job.limits, found),
        ]
        problems += [
            plan.refused for plan in surveyed(prepared, found, "due", repair=False) if plan.published is not None
        ]
        said = "; ".join(problem for problem in problems if problem is not None)
        if said:
            raise Incomplete(said)
        passed = f"; {found.passed}" if found.passed.total else ""
        return (
            f"{found.images} images in {len(found.partitions)} partition(s) of the window {prepared.job.window}{passed}"
        )

    def output() -> str | None:
        if prepared.job.output.single_writer:
            return "single_writer: conditional puts are not needed"
        refused = prepared.output.store.probe(prepared.output.scratch)
        if refused is not None:
            raise UnetBatchError(refused)
        return f"{prepared.job.output.uri} honours conditional puts"

    steps: list[tuple[str, Callable[[], str | None]]] = [
        ("job session", session),
        ("job archive", archive),
        ("job output", output),
    ]
    for name, step in steps:
        try:
            yield CheckResult(name, True, step() or "")
        except UnetBatchError as error:
            yield CheckResult(name, False, str(error))
