"""The C kernel's build. Everything else stands in pyproject.toml.

The kernel is optional: a machine without a compiler installs and runs on the NumPy reference.
NBMF_STRICT_BUILD=1 makes a failed compile an error, so that CI and wheel builds see it.
"""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
CODEC = Path("src/nbmf/codec")
ABI_FLOOR = 0x030B0000  # CPython 3.11
ABI_TAG = "cp311"

UNIX_FLAGS = ["-O3", "-fwrapv", "-std=c11", "-D_GNU_SOURCE", "-pthread"]
MSVC_FLAGS = ["/O2", "/std:c11"]


def found(pattern: str) -> list[str]:
    """Paths under the codec package that match, relative to the repository root, in a fixed order."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / CODEC).glob(pattern))


def kernel() -> Extension:
    strict = os.environ.get("NBMF_STRICT_BUILD") == "1"
    # The limited API does not exist in free-threaded builds: there the extension is built for one version.
    limited = not sysconfig.get_config_var("Py_GIL_DISABLED")
    windows = sys.platform == "win32"
    macros: list[tuple[str, str | None]] = [("Py_LIMITED_API", hex(ABI_FLOOR))] if limited else []
    return Extension(
        "nbmf.codec._kernel",
        sources=[
            (CODEC / "_kernelmodule.c").as_posix(),
            (CODEC / "kernel.c").as_posix(),
            *found("kernel_*.c"),
        ],
        depends=found("*.h"),
        include_dirs=[CODEC.as_posix()],
        define_macros=macros,
        extra_compile_args=MSVC_FLAGS if windows else UNIX_FLAGS,
        extra_link_args=[] if windows else ["-pthread"],
        py_limited_api=limited,
        optional=not strict,
    )


options = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": ABI_TAG}}
setup(ext_modules=[kernel()], options=options)
