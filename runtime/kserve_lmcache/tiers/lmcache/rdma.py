"""The devices for remote direct memory access (RDMA), which some stores need."""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path("sys/class/infiniband")


def devices(root: Path) -> list[str]:
    """Returns the names of the devices, for example ``mlx5_0``.

    Args:
        root: the directory that ``sys`` is in.
    """
    directory = root / DIRECTORY
    return sorted(each.name for each in directory.iterdir()) if directory.is_dir() else []
