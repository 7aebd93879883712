"""Devices for remote direct memory access, which some stores need."""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path("sys/class/infiniband")


def devices(root: Path) -> list[str]:
    """Their names, as ``mlx5_0``.

    Args:
        root: where ``/sys`` is looked for.
    """
    directory = root / DIRECTORY
    return sorted(each.name for each in directory.iterdir()) if directory.is_dir() else []
