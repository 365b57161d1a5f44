"""Functions in C that the library calls back, compiled when first needed if there is a C compiler, as for building
llama-cpp-python."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from pipeinfer.engine.backend import BadModel
from pipeinfer.engine.model_cache import cache_folder, made_once

COMPILE_S = 60.0


@cache
def compiled(name: str) -> Any:
    """The library of the file `name`.c beside this one, compiled now or before; None where that is not to be had."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None or os.name == "nt":
        return None
    source = Path(__file__).with_name(f"{name}.c")
    digest = hashlib.sha256(source.read_bytes() + platform.platform().encode()).hexdigest()[:16]

    def compile_it(path: Path) -> None:
        command = [compiler, "-O2", "-shared", "-fPIC", "-x", "c", "-o", str(path), str(source)]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_S)

    try:
        return ctypes.CDLL(str(made_once(cache_folder("native") / f"{name}-{digest}.so", compile_it)))
    except (OSError, subprocess.SubprocessError, BadModel):
        return None
