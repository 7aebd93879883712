"""Pods on this machine, as KServe and the kubelet make them of manifests.

Each pod has a network namespace with an address of its own on a bridge; each container has a root
file system that it cannot write to, the volumes and the environment that its manifest says, its
user, no capabilities, and its memory limit.
"""

from tests.support.cluster.cluster import Cluster
from tests.support.cluster.container import Image, Pod, Running

__all__ = ["Cluster", "Image", "Pod", "Running"]
