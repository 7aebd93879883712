"""The API server by the Kubernetes client, and the commands that the documents have by kubectl."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kubernetes import config
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException

Document = dict[str, Any]

KUBECTL = Path(sys.executable).with_name("kubectl")
# Where each kind's objects are.
PATHS = {
    "Pod": "/api/v1/namespaces/{0}/pods",
    "Service": "/api/v1/namespaces/{0}/services",
    "ConfigMap": "/api/v1/namespaces/{0}/configmaps",
    "Secret": "/api/v1/namespaces/{0}/secrets",
    "Event": "/api/v1/namespaces/{0}/events",
    "Namespace": "/api/v1/namespaces",
    "Deployment": "/apis/apps/v1/namespaces/{0}/deployments",
    "StatefulSet": "/apis/apps/v1/namespaces/{0}/statefulsets",
    "ReplicaSet": "/apis/apps/v1/namespaces/{0}/replicasets",
    "InferenceService": "/apis/serving.kserve.io/v1beta1/namespaces/{0}/inferenceservices",
    "ServingRuntime": "/apis/serving.kserve.io/v1alpha1/namespaces/{0}/servingruntimes",
}


class ApiError(Exception):
    """The API server refuses, or kubectl fails.

    Attributes:
        status: the HTTP status; 0 for kubectl.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        self.status = status
        super().__init__(message)


class Api:
    """A cluster.

    Args:
        kubeconfig: its file; empty for where kubectl looks by itself.
        kubectl: the command; a test of this module has a stand-in.
    """

    def __init__(self, kubeconfig: str = "", kubectl: Path = KUBECTL) -> None:
        self._kubeconfig = kubeconfig
        self._kubectl = kubectl
        self._client: ApiClient = config.new_client_from_config(kubeconfig or None)

    def get(self, kind: str, namespace: str, name: str) -> Document | None:
        """An object, or ``None`` where there is none."""
        try:
            return self._ask("GET", f"{_path(kind, namespace)}/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def find(self, kind: str, namespace: str, selector: str = "") -> list[Document]:
        """The objects of a kind, by labels."""
        query = [("labelSelector", selector)] if selector else []
        items: list[Document] = self._ask("GET", _path(kind, namespace), query)["items"]
        return items

    def create(self, kind: str, namespace: str, document: Document) -> Document:
        return self._ask("POST", _path(kind, namespace), body=document)

    def patch(self, kind: str, namespace: str, name: str, change: Document) -> Document:
        """Lay a JSON merge patch over an object."""
        header = {"Content-Type": "application/merge-patch+json"}
        return self._ask("PATCH", f"{_path(kind, namespace)}/{name}", body=change, header=header)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object; one that is gone is no error."""
        try:
            self._ask("DELETE", f"{_path(kind, namespace)}/{name}")
        except ApiError as error:
            if error.status != 404:
                raise

    def post_to_pod(self, namespace: str, pod: str, port: int, path: str, body: Any) -> Any:
        """A request to one pod, through the API server."""
        proxy = f"{_path('Pod', namespace)}/http:{pod}:{port}/proxy{path}"
        return self._ask("POST", proxy, body=body)

    def log(self, namespace: str, pod: str, container: str) -> str:
        path = f"{_path('Pod', namespace)}/{pod}/log"
        return self._text("GET", path, [("container", container)])

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """What a command prints.

        Raises:
            ApiError: the command fails.
        """
        command = [str(self._kubectl), *words]
        if self._kubeconfig:
            command[1:1] = [f"--kubeconfig={self._kubeconfig}"]
        done = subprocess.run(command, capture_output=True, text=True, input=stdin, check=False)
        if done.returncode:
            raise ApiError(f"kubectl {' '.join(words)}: {done.stderr.strip() or done.stdout}")
        return done.stdout

    def _ask(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        body: Any = None,
        header: Mapping[str, str] | None = None,
    ) -> Any:
        return json.loads(self._text(method, path, query, body, header) or "null")

    def _text(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        body: Any = None,
        header: Mapping[str, str] | None = None,
    ) -> str:
        headers = {"Accept": "application/json, */*", "Content-Type": "application/json"}
        request = self._client.param_serialize(
            method,
            path,
            query_params=list(query),
            header_params={**headers, **(header or {})},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self._client.call_api(*request)
            response.read()
        except ApiException as error:
            message = f"{method} {path}: {error.status} {error.body or error.reason}"
            raise ApiError(message, error.status or 0) from error
        text = (response.data or b"").decode()
        if not 200 <= response.status < 300:
            raise ApiError(f"{method} {path}: {response.status} {text}", response.status)
        return text


def wait(
    done: Callable[[], Any],
    seconds: float,
    tell: Callable[[], str] = str,
    pause: float = 2.0,
) -> Any:
    """Ask until the answer is neither empty nor false; returns it.

    Args:
        tell: says how things stand when the time is over.

    Raises:
        AssertionError: the time is over.
    """
    deadline = time.monotonic() + seconds
    while not (answer := done()):
        assert time.monotonic() < deadline, f"it did not happen in {seconds:g} s: {tell()}"
        time.sleep(pause)
    return answer


def condition(document: Document | None, kind: str) -> str:
    """A condition of an object's status: True, False, Unknown, or nothing."""
    for each in (document or {}).get("status", {}).get("conditions", []):
        if each["type"] == kind:
            return str(each["status"])
    return ""


def _path(kind: str, namespace: str) -> str:
    return PATHS[kind].format(namespace)
