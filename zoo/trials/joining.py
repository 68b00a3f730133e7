"""Which executor a grid gets, and the way into a Ray cluster."""

from __future__ import annotations

import os
import socket
from typing import Any

from zoo.core.part import ConfigError, nearest
from zoo.trials.places import AUTO, Execution

EXECUTORS = ("local", "ray")


def check_executor(how: Execution) -> None:
    """Whether these options go together.

    Raises:
        ConfigError: which do not.
    """
    if how.executor not in EXECUTORS:
        raise ConfigError(f"--executor {how.executor}: unknown executor, {nearest(how.executor, EXECUTORS)}")
    if how.executor == "local" and how.address is not None:
        raise ConfigError(f"--address {how.address}: only --executor ray has a cluster")
    if how.executor == "ray" and how.per_device == AUTO:
        raise ConfigError("--per-device auto: with --executor ray say a number; only this machine can be measured")
    for option, value in (("--workers", how.workers), ("--devices", how.devices)):
        if how.executor == "ray" and value is not None:
            raise ConfigError(f"{option} {value}: with --executor ray the machines of the cluster say how many at once")


def imported() -> Any:
    """Ray, told to report its use to nobody."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise ConfigError("--executor ray: Ray is not installed (pip install 'ablation-zoo[cluster]')") from None
    return ray


def connect(ray: Any, address: str | None) -> None:
    """Join the cluster at an address, or begin one of this machine alone.

    Raises:
        ConfigError: no cluster answers there.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if "://" in address:
        raise ConfigError(f"--address {address}: must be auto, or host:port of a cluster that this machine belongs to")
    host, _, port = address.rpartition(":")
    if host:
        try:
            socket.create_connection((host, int(port)), 10.0).close()
        except (OSError, ValueError) as fault:
            raise ConfigError(f"--address {address}: no Ray cluster answers there: {fault}") from None
    own = {"include_dashboard": False} if address == "local" else {}
    # Ray prints reports on its machines to standard output, whatever log_to_driver says: nothing but results may stand there
    ray._private.worker._worker_logs_enabled = False
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError) as fault:
        raise ConfigError(f"--address {address}: no Ray cluster answers there: {last_line(fault)}") from None


def last_line(fault: Exception) -> str:
    """The gist of an error of Ray, whose first lines are names and numbers."""
    return str(fault).strip().splitlines()[-1].strip() if str(fault).strip() else type(fault).__name__
