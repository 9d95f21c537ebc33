"""Under what a result was measured: the machine, the versions, the commit, the model, the data."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import zstandard

from nbmf.bench.records import names_of
from nbmf.codec import kernel
from nbmf.codec.codec import Codec

LOAD: Final = """
import json, sys, time
from nbmf import samples
from nbmf.codec.codec import Codec
def resident():
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return None
values = [sample.value for sample in samples.load()]
before, start = resident(), time.perf_counter()
codec = Codec(model=sys.argv[1], domain=sys.argv[2] or None)
spent = time.perf_counter() - start
from nbmf.codec import kernel
for value in values if kernel.backend == "c" else values[:1]:
    codec.encode(value)
after = resident()
print(json.dumps([spent * 1000, after - before if after is not None else None]))
"""


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit that is checked out where the package lies, read from the folder .git itself."""
    for folder in Path(__file__).resolve().parents:
        head = folder / ".git" / "HEAD"
        if not head.is_file() or not (folder / "pyproject.toml").is_file():
            continue
        name = head.read_text(encoding="utf-8").strip()
        if not name.startswith("ref: "):
            return name
        ref = name[5:]
        if (folder / ".git" / ref).is_file():
            return (folder / ".git" / ref).read_text(encoding="utf-8").strip()
        packed = folder / ".git" / "packed-refs"
        lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
        return next((line.split()[0] for line in lines if line.endswith(f" {ref}")), None)
    return None


def simd() -> str | None:
    """The SIMD level that the C kernel uses."""
    return str(importlib.import_module("nbmf.codec._kernel").simd()) if kernel.backend == "c" else None


def machine() -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "nbmf": importlib.metadata.version("nbmf"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "zstandard": zstandard.__version__,
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "kernel": kernel.backend,
        "simd": simd(),
    }


def about_model(codec: Codec, model: str, profile: str) -> dict[str, Any]:
    found = {
        "name": model,
        "profile": profile,
        "id": codec.model.id.hex(),
        "bytes": len(codec.model.buffer),
    }
    return {**found, "pack_id": codec.id, "pack_bytes": len(codec.pack.buffer)} if codec.pack else found


def loading(model: str, domain: str | None) -> dict[str, Any]:
    """ms to load the model in a process of its own, files cached, and the memory that it then takes."""
    best: list[Any] = []
    for _ in range(3):
        command = [sys.executable, "-c", LOAD, model, domain or ""]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            best.append(json.loads(done.stdout))
    if not best:
        return {}
    return {"load_ms": min(one[0] for one in best), "resident_bytes": best[-1][1]}


def conditions(what: str, data: Sequence[str | Path], limit: int | None, every: int) -> dict[str, Any]:
    return {
        "measured": what,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "machine": machine(),
        "data": {"files": names_of(data), "records": every, "limit": limit},
    }
