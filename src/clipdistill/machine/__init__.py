"""What this machine has and what it lacks: packages, torch, a GPU, room, the way to the hubs."""

from __future__ import annotations

from clipdistill.machine import compute, hubs, packages, room
from clipdistill.machine.finding import Finding

__all__ = ["Finding", "examine"]


def examine(online: bool = False) -> dict[str, list[Finding]]:
    """Look at everything, by topic; with ``online`` also ask the hub whether it answers.

    Nothing is raised: what cannot be found out is a finding. ``packages`` begins with the base install.
    """
    return {
        "packages": packages.look(),
        "computing": compute.look(),
        "room": room.look(),
        "hubs": hubs.look(online),
    }
