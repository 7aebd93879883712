"""The test model, which a wheel brings."""

from __future__ import annotations

from benchmarks.contenders import MODEL

from tests.gpu.steps.context import Context


def run(context: Context) -> None:
    context.python("-m", "kserve_lmcache", "demo-model", str(MODEL), CUDA_VISIBLE_DEVICES="")
    files = [path for path in MODEL.iterdir() if path.is_file()]
    context.facts["model"] = f"{MODEL.name}, {sum(path.stat().st_size for path in files):,} bytes"
