"""How the server asks every worker for the state of its connector."""

from __future__ import annotations

from typing import Any


class OffloadReporter:
    """Mixed into vLLM's worker by ``--worker-extension-cls``; called by collective RPC."""

    def kserve_lmcache_report(self) -> dict[str, Any]:
        """The report of this worker's connector."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

        if not has_kv_transfer_group():
            return {
                "failure": "vLLM created no KV connector",
                "config": {},
                "faults": {},
                "tiers": {},
                "moments": {},
            }
        report: dict[str, Any] = get_kv_transfer_group().report()
        return report
