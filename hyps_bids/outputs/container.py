"""The container that we run in, as far as its environment tells."""

from __future__ import annotations

import os
from pathlib import Path


def running_container() -> dict[str, str]:
    """Return ``Type`` and ``Tag`` of the container for ``GeneratedBy``; empty outside one."""
    for variable in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        if os.environ.get(variable):
            return {"Type": "singularity", "Tag": Path(os.environ[variable]).name}
    if os.environ.get("HYPS_BIDS_CONTAINER"):
        # Our image sets this variable. Podman names itself; Docker and Kubernetes do not.
        engine = "podman" if os.environ.get("container") == "podman" else "docker"  # noqa: SIM112
        return {"Type": engine, "Tag": os.environ["HYPS_BIDS_CONTAINER"]}
    return {}
