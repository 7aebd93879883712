"""The command with which KServe starts the server of an LLMInferenceService.

The script is the end of KServe's ``config/llmisvcconfig/config-llm-template.yaml`` (0.20), after
the part for RoCE: word for word, with its quoting. Where KServe's controller fills a field of its
template in, there is ``@FIELD@``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SCRIPT = r"""
# --disable-access-log-for-endpoints landed in vLLM 0.16.0 (vllm-project/vllm#30011).
# Older versions still need the blanket --disable-uvicorn-access-log.
ACCESS_LOG_ARGS="--disable-uvicorn-access-log"
VLLM_VERSION=$(vllm --version 2>/dev/null | tail -1 | awk '{print $NF}')
echo "[access-log-detect] vllm version='${VLLM_VERSION}'"
if [[ "$VLLM_VERSION" =~ ^[0-9]+\.[0-9]+ ]] && [ "$(printf '%s\n%s\n' "0.16.0" "${VLLM_VERSION}" | sort -V | head -1)" = "0.16.0" ]; then
  ACCESS_LOG_ARGS="--disable-access-log-for-endpoints /health,/metrics,/ping"
fi
echo "[access-log-detect] selected ACCESS_LOG_ARGS='${ACCESS_LOG_ARGS}'"

# --shutdown-timeout landed in vLLM 0.18.0 (vllm-project/vllm#36666).
SHUTDOWN_TIMEOUT_ARGS=""
if [[ "$VLLM_VERSION" =~ ^[0-9]+\.[0-9]+ ]] && [ "$(printf '%s\n%s\n' "0.18.0" "${VLLM_VERSION}" | sort -V | head -1)" = "0.18.0" ]; then
  SHUTDOWN_TIMEOUT_ARGS="--shutdown-timeout @SHUTDOWN_TIMEOUT@"
fi

# --kv-transfer-config with OffloadingConnector requires vLLM 0.22.0+ (vllm-project/vllm#40020).
KV_TRANSFER_ARGS=""
if [[ "$VLLM_VERSION" =~ ^[0-9]+\.[0-9]+ ]] && [ "$(printf '%s\n%s\n' "0.22.0" "${VLLM_VERSION}" | sort -V | head -1)" = "0.22.0" ]; then
  if [[ "${VLLM_ADDITIONAL_ARGS:-}" != *"--kv-transfer-config"* ]] && [[ "${VLLM_ADDITIONAL_ARGS:-}" != *"--kv_transfer_config"* ]] && [[ "$*" != *"--kv-transfer-config"* ]] && [[ "$*" != *"--kv_transfer_config"* ]]; then
    KV_TRANSFER_ARGS="@KV_TRANSFER_CONFIG@"
  fi
fi

eval "exec vllm serve @MODEL_DIR@ \
  --served-model-name "@NAME@" "publishers/@NAMESPACE@/models/@NAME@" \
  --port @PORT@ \
  ${ACCESS_LOG_ARGS} \
  ${SHUTDOWN_TIMEOUT_ARGS} \
  ${KV_TRANSFER_ARGS} \
  @TENSOR@ \
  @REFRESH@ \
  @CERT@ \
  @KEY@ \
  ${VLLM_ADDITIONAL_ARGS} \
  $@"
"""  # noqa: E501 (a copy)


@dataclass(frozen=True)
class Preset:
    """A service as the controller fills it in.

    Attributes:
        model_dir: KServe's is always ``/mnt/models``.
        port: KServe's is always 8000.
        name: of the model.
        namespace: of the service.
        shutdown_timeout: what is left of the pod's grace period.
        tensor: the tensor parallel size; 0 where the service has none.
        tls: certificate and key, where the cluster turns TLS on.
        offloading: the field ``kvCacheOffloading``: ``cpu`` in bytes, ``evictionPolicy``, and
            ``secondary``, the directories of its volumes.
    """

    model_dir: str = "/mnt/models"
    port: int = 8000
    name: str = "smollm2"
    namespace: str = "models"
    shutdown_timeout: int = 40
    tensor: int = 0
    tls: tuple[str, str] | None = None
    offloading: Mapping[str, Any] | None = None

    def command(self, *arguments: str) -> list[str]:
        """The container's command, and the service's args behind it."""
        return ["/bin/bash", "-c", self.script(), "--", *arguments]

    def script(self) -> str:
        """The script of the container's command."""
        certificate, key = self.tls or ("", "")
        fields = {
            "MODEL_DIR": self.model_dir,
            "PORT": str(self.port),
            "NAME": self.name,
            "NAMESPACE": self.namespace,
            "SHUTDOWN_TIMEOUT": str(self.shutdown_timeout),
            "KV_TRANSFER_CONFIG": self._kv_transfer_config(),
            "TENSOR": f"--tensor-parallel-size {self.tensor}" if self.tensor else "",
            "REFRESH": "--enable-ssl-refresh" if self.tls else "",
            "CERT": f"--ssl-certfile {certificate}" if self.tls else "",
            "KEY": f"--ssl-keyfile {key}" if self.tls else "",
        }
        script = _SCRIPT
        for name, text in fields.items():
            script = script.replace(f"@{name}@", text)
        return script

    def _kv_transfer_config(self) -> str:
        """As KServe's ``kvTransferConfig`` writes it: Go sorts the keys, and escapes the quotes."""
        if self.offloading is None:
            return ""
        extra: dict[str, Any] = {
            "cpu_bytes_to_use": self.offloading["cpu"],
            "spec_name": "TieringOffloadingSpec",
        }
        if policy := self.offloading.get("evictionPolicy"):
            extra["eviction_policy"] = policy
        if directories := self.offloading.get("secondary"):
            extra["secondary_tiers"] = [{"root_dir": each, "type": "fs"} for each in directories]
        config = {
            "kv_connector": "OffloadingConnector",
            "kv_connector_extra_config": extra,
            "kv_role": "kv_both",
        }
        text = json.dumps(config, sort_keys=True, separators=(",", ":"))
        return "--kv-transfer-config '" + text.replace('"', '\\"') + "'"
