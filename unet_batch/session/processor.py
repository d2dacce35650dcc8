"""The processor of this machine: its name, and how it computes products of 8-bit numbers.

Knows what Linux says in /proc/cpuinfo. Knows no model and no engine's library.
"""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
DOT_PRODUCTS = ("amx_int8", "avx512_vnni", "avx_vnni")
"""Instructions of x86 that add up 8-bit products in 32 bits, best first. Without one of them engines add two products
in 16 bits (`vpmaddubsw`), which saturates: 255 · 127 · 2 is more than 32767."""
_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
_BELOW_VNNI = frozenset({"SSE41", "AVX", "AVX2", "AVX512_CORE"})
"""Values of oneDNN's ONEDNN_MAX_CPU_ISA that forbid it those instructions."""


def processor_name() -> str:
    """The processor, as its maker calls it."""
    return _line("model name") or platform.processor() or platform.machine()


def instructions(cpuinfo: Path | None = None) -> frozenset[str]:
    """What Linux calls the instructions of the processor; empty where nobody says. cpuinfo: left out, `CPUINFO`."""
    return frozenset((_line("flags", cpuinfo) or _line("Features", cpuinfo) or "").split())


def int8_instruction(engine: str = "onnxruntime") -> str | None:
    """What makes products of 8-bit numbers exact here: an instruction, or the architecture where it is no x86.

    None: they may saturate, or nobody says. engine: OpenVINO does as oneDNN's environment variable says.
    """
    if platform.machine().lower() not in _X86:
        return platform.machine()
    if engine == "openvino" and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _BELOW_VNNI:
        return None
    found = instructions()
    return next((name for name in DOT_PRODUCTS if name in found), None)


def _line(word: str, cpuinfo: Path | None = None) -> str | None:
    """What stands behind the first line that begins with this word."""
    with contextlib.suppress(OSError):
        for line in (cpuinfo or CPUINFO).read_text(errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == word:
                return value.strip()
    return None
