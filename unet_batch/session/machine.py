"""This machine: its processor, how that computes products of 8-bit numbers, its cache folder, and what it reports."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
DOT_PRODUCTS = ("amx_int8", "avx512_vnni", "avx_vnni")
"""Instructions of x86 that add 8-bit products in 32 bits, best first. Without them engines add two products in 16 bits
(`vpmaddubsw`), which saturates: 255 · 127 · 2 is more than 32767."""
_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
_BELOW_VNNI = frozenset({"SSE41", "AVX", "AVX2", "AVX512_CORE"})
"""Values of oneDNN's ONEDNN_MAX_CPU_ISA that exclude those instructions."""


def cache_folder(kind: str) -> Path:
    """Where this machine keeps what costs time to find out again, by its kind: `$XDG_CACHE_HOME/unet-batch/<kind>`."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "unet-batch" / kind


def report_nothing() -> None:
    """Keep ONNX Runtime from sending usage data. Call it before every import of onnxruntime.

    From version 1.29 on its Linux wheels send names and digests of models to Microsoft, and keep an id of the machine
    in the cache folder, unless this variable is set when the library is loaded. A value that the user set stays.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def processor_name() -> str:
    """The maker's name of the processor."""
    return _line("model name") or platform.processor() or platform.machine()


def instructions(cpuinfo: Path | None = None) -> frozenset[str]:
    """Linux's names of the processor's instructions; empty if unknown. cpuinfo: default `CPUINFO`."""
    return frozenset((_line("flags", cpuinfo) or _line("Features", cpuinfo) or "").split())


def int8_instruction(*, onednn: bool = False) -> str | None:
    """Why products of 8-bit numbers are exact here: an instruction, or the architecture if it is not x86.

    None: they may saturate, or it is unknown. onednn: whether the environment variable of oneDNN counts.
    """
    if platform.machine().lower() not in _X86:
        return platform.machine()
    if onednn and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _BELOW_VNNI:
        return None
    found = instructions()
    return next((name for name in DOT_PRODUCTS if name in found), None)


def _line(word: str, cpuinfo: Path | None = None) -> str | None:
    """The value in the first line that begins with this word."""
    with contextlib.suppress(OSError):
        for line in (cpuinfo or CPUINFO).read_text(errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == word:
                return value.strip()
    return None
