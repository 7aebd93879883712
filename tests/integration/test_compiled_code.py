"""torch's real compiler: what one server has compiled, the next one does not compile again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.server import ROOT

# Compiles a function as vLLM does, or loads it, and prints how many files the C++ compiler made.
SERVER = """
import os, sys
from pathlib import Path
from kserve_lmcache.engine.compiled_code import Keeper

keeper = Keeper(Path(sys.argv[1]), "a-model@", "a-model")
keeper.redirect(os.environ, {})

import torch
from torch._inductor import CompiledArtifact, cpp_builder, standalone_compile
from torch.fx.experimental.proxy_tensor import make_fx

compiled, compile_file = [], cpp_builder.run_compile_cmd
def count(command, *rest, **named):
    compiled.append(command)
    return compile_file(command, *rest, **named)
cpp_builder.run_compile_cmd = count

def function(x):
    return (torch.nn.functional.gelu(x) + x.sin()).softmax(-1)

x = torch.linspace(0, 1, 1024).reshape(8, 128)
path = Path(os.environ["VLLM_CACHE_ROOT"], "artifact")
if path.exists():
    artifact = CompiledArtifact.load(path=str(path), format="binary")
else:
    path.parent.mkdir()
    artifact = standalone_compile(make_fx(function)(x), [x], dynamic_shapes="from_graph")
    artifact.save(path=str(path), format="binary")
y = artifact(x)
y = y if isinstance(y, torch.Tensor) else y[0]
torch.testing.assert_close(y, function(x))
keeper.save()
keeper.close()
# A header that every process compiles once is in no cache.
print(len([command for command in compiled if "header.hpp" not in command]))
"""


def compiled_files(kept: Path, temporary: Path) -> int:
    result = subprocess.run(
        [sys.executable, "-c", SERVER, str(kept)],
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT / "runtime"),
            "HOME": str(temporary),
            "TMPDIR": str(temporary),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout.splitlines()[-1])


def test_the_second_server_compiles_nothing(tmp_path: Path) -> None:
    kept, temporary = tmp_path / "kept", tmp_path / "tmp"
    temporary.mkdir()
    assert compiled_files(kept, temporary) > 0
    assert list(temporary.glob("kserve-lmcache-compiled-*/0")) == []
    assert compiled_files(kept, temporary) == 0
    (archive,) = kept.rglob("compiled")
    archive.write_bytes(archive.read_bytes()[:-1000])
    assert compiled_files(kept, temporary) > 0
    assert compiled_files(kept, temporary) == 0
