"""Where a trial runs: device, stream dtype and threads, settled before the run because each of them changes bits."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

from zoo.core.part import ConfigError
from zoo.core.precision import bf16_is_fast

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def settle_device(asked: str) -> str:
    """``auto`` becomes cuda, mps or cpu, whichever is there first.

    Raises:
        ConfigError: a device that this machine does not have.
    """
    if asked == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ConfigError("is no device; write auto, cpu, cuda, cuda:1 or mps", "device", asked) from None
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if missing or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise ConfigError("this machine has no such device", "device", asked)
    return asked


def settle_dtype(asked: str, device: str) -> str:
    """``auto`` becomes bfloat16 where matrix products in it are fast, else float32."""
    if asked != "auto":
        return asked
    return "bfloat16" if bf16_is_fast(device) else "float32"


def settle_threads(asked: int) -> int:
    """0 becomes the number of cores that this process may use."""
    if asked:
        return asked
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed instead of giving it back to the system after every step.

    A training step frees and asks for the same large blocks again and again, and each time the system fills the new pages with
    zeros: about a sixth of the time of a small model's step. Only glibc has the switch; elsewhere nothing happens.

    Returns:
        whether the library took it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim, top_pad, mmap_max = -1, -2, -4  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX of malloc.h
    library = ctypes.CDLL(None)
    return all([library.mallopt(trim, 2**31 - 1), library.mallopt(top_pad, 2**26), library.mallopt(mmap_max, 0)])


OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether a device or the system had no memory left, in any of the ways in which torch says so."""
    if isinstance(fault, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(fault, RuntimeError) and any(words in str(fault) for words in OUT_OF_MEMORY)


def release_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


CONTEXT = 600 * 2**20  # bytes that a process takes on a GPU before it has a single tensor there, about


def free_memory(device: str) -> int:
    """Bytes that are free on a GPU, what this process has taken by asking counted as free; elsewhere of the system's memory."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] + CONTEXT
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, StopIteration):
        line = next(row for row in Path("/proc/meminfo").read_text().splitlines() if row.startswith("MemAvailable"))
        free = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such group, or "max"
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


def taken_memory(device: str) -> int:
    """Peak bytes that this process has taken from what ``free_memory`` says."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved(device) + CONTEXT
    return resident_peak()


class PeakMemory:
    """Peak bytes since it was made: of the device's allocator on a GPU, of the process's resident set elsewhere."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, Linux only

    def read(self) -> int:
        """Bytes; on systems that cannot reset the counter, since the process began."""
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device)
        return resident_peak()


def resident_peak() -> int:
    """The peak of the process's resident set in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def facts(device: str) -> dict[str, str]:
    """What must stand beside a figure: processor or GPU, system, versions."""
    import numpy

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name()
    return {
        "machine": name,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    rows = info.read_text().splitlines() if info.exists() else []
    name = next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), platform.processor())
    return f"{name}, {settle_threads(0)} cores"
