"""The section `session` of the job file: providers, threads, batches."""

from __future__ import annotations

import difflib
import re
from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from unet_batch.contract import Section

ProviderName = Literal["cpu", "cuda", "tensorrt"]
EXECUTION_PROVIDER = re.compile(r"[A-Za-z0-9]+ExecutionProvider")
ProviderOptions = dict[str, dict[str, str | bool | int | float]]


class SessionSpec(Section):
    """How the model runs. Does not change a result beyond the last bits."""

    providers: tuple[str, ...] = Field(default=("cpu",), min_length=1, strict=False)
    """`cpu`, `cuda`, `tensorrt`, or ONNX Runtime's name of another provider, such as `CoreMLExecutionProvider`, in
    order of preference. A single provider must work; with several, the next one is used if one does not work."""
    provider_options: ProviderOptions = {}
    """Options by provider, e.g. `tensorrt: {trt_builder_optimization_level: 4}`. The options of providers outside the
    three short names enter the fingerprint."""
    custom_ops: tuple[str, ...] = Field(default=(), strict=False)
    """Libraries with custom operators (`libfoo.so`), relative to the working directory. They are native code with all
    rights of the job. Their names and digests enter the fingerprint."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads of one session on the CPU (ONNX Runtime's `intra_op_num_threads`). A run has as many sessions as cores
    divided by it. Default: one thread, which is fastest where all cores have work."""
    strict: bool = False
    """Whether `model.engine: auto` refuses to run where it cannot follow the model's recommendation."""
    batch_max: int = Field(default=64, ge=1)
    """Largest batch the ladder may try."""
    gpu_share: float = Field(default=1.0, gt=0, le=1)
    """Share of a GPU that one session actor gets."""
    gpu_memory_share: float = Field(default=0.85, gt=0, le=1)
    """Share of the actor's GPU memory that the arena may take."""
    cudnn_search: Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"] = "HEURISTIC"
    """How cuDNN selects convolution algorithms."""

    @field_validator("providers")
    @classmethod
    def _are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = get_args(ProviderName)
        for name in names:
            if name not in known and not EXECUTION_PROVIDER.fullmatch(name):
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
                hint = f"did you mean {near[0]}?" if near else f"write {', '.join(known)}, or ONNX Runtime's own name"
                raise ValueError(f"there is no provider {name}; {hint}")
        return names

    @model_validator(mode="after")
    def _options_have_a_provider(self) -> SessionSpec:
        unknown = sorted(self.provider_options.keys() - set(self.providers))
        if unknown:
            raise ValueError(f"provider_options.{unknown[0]} belongs to no provider of session.providers")
        return self
