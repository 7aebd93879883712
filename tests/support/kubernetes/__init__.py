"""A real cluster, as the suite of ``make test-cluster`` uses it.

``api`` asks the API server and runs kubectl, ``namespace`` holds what a test applies and takes it
away again, ``load`` sends requests from inside of the cluster.
"""

from tests.support.kubernetes.api import Api, ApiError
from tests.support.kubernetes.load import Load
from tests.support.kubernetes.namespace import Namespace

__all__ = ["Api", "ApiError", "Load", "Namespace"]
