"""The place of the model's files, before anything slow starts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_lmcache.cli import main as cli
from kserve_lmcache.errors import UsageError
from kserve_lmcache.identity.arrival import INIT_MODE, await_model, why_no_model

ASYNC = {INIT_MODE: "async"}
USER = 1010  # KServe's, for the model's container and for ours
HERE = Path(__file__).resolve().parents[3]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def test_a_model_that_is_there(model: Path) -> None:
    await_model(model, {}, limit=0)
    await_model(model, ASYNC, limit=0)
    assert why_no_model(model) == ""


def test_an_empty_directory_names_the_claims_likely_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is empty: the claim probably has no folder .*pvc://"):
        await_model(tmp_path, {})


def test_folders_alone_name_the_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "Qwen3-0.6B").mkdir()
    (tmp_path / "lost+found").mkdir()
    with pytest.raises(UsageError, match=r"folders alone \(Qwen3-0.6B, lost\+found\)"):
        await_model(tmp_path, {})


def test_a_directory_that_nobody_mounted_is_left_to_others(tmp_path: Path) -> None:
    await_model(tmp_path / "absent", {}, limit=0)


def test_a_dangling_link_is_waited_for(model: Path, tmp_path: Path) -> None:
    link, target = tmp_path / "models", tmp_path / "later"
    link.symlink_to(target)
    timer = threading.Timer(1.0, model.rename, (target,))
    timer.start()
    started = time.monotonic()
    await_model(link, ASYNC, limit=20)
    timer.join()
    assert 0.5 < time.monotonic() - started < 10


def test_a_link_that_is_not_there_yet_is_waited_for(model: Path, tmp_path: Path) -> None:
    link = tmp_path / "models"
    timer = threading.Timer(0.6, link.symlink_to, (model,))
    timer.start()
    await_model(link, ASYNC, limit=20)
    timer.join()


def test_the_wait_has_a_limit(tmp_path: Path) -> None:
    link = tmp_path / "models"
    with pytest.raises(UsageError, match=r"is not there after 0 s: .*\(modelcar\) did not start"):
        await_model(link, ASYNC, limit=0.1)
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="leads nowhere after 0 s"):
        await_model(link, ASYNC, limit=0.1)


def test_only_a_link_into_a_container_is_waited_for(tmp_path: Path) -> None:
    own, of_kserve = tmp_path / "own", tmp_path / "models"
    own.symlink_to(tmp_path / "nowhere")
    await_model(own, {}, limit=20)  # at once; the engine says that there is no model
    of_kserve.symlink_to("/proc/999999999/root/models")
    with pytest.raises(UsageError, match="leads nowhere"):
        await_model(of_kserve, {}, limit=0.1)


def test_what_is_empty_behind_a_link_is_empty(tmp_path: Path) -> None:
    link, target = tmp_path / "models", tmp_path / "target"
    target.mkdir()
    link.symlink_to(target)
    with pytest.raises(UsageError, match="models is empty"):
        await_model(link, ASYNC)


@pytest.fixture
def link_into_a_container(model: Path) -> Iterator[Path]:
    """What KServe's sidecar lays: a link by which only its own user and group see its files."""
    if os.geteuid() != 0:
        pytest.fail("processes of other users need root")
    for folder in (model, *model.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    command = [*_as(USER, 0), "sleep", "60"]
    sidecar = subprocess.Popen(command)
    link = model.parent / "models"
    link.symlink_to(f"/proc/{sidecar.pid}/root{model}")
    try:
        yield link
    finally:
        sidecar.kill()
        sidecar.wait()


@pytest.mark.cluster
def test_a_link_into_a_container_wants_its_user_and_group(link_into_a_container: Path) -> None:
    assert _looked_at(link_into_a_container, USER, 0) == ""
    for user, group in ((USER, 1000), (1000, 0)):
        reason = _looked_at(link_into_a_container, user, group)
        assert "only a process of the same user and group may read" in reason
        assert "remove runAsUser and runAsGroup" in reason


def _as(user: int, group: int) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--inh-caps=-all"]


def _looked_at(link: Path, user: int, group: int) -> str:
    """What a process of a user says to the link; nothing when it sees a model."""
    # Imported before the user changes, who may not read this checkout.
    code = (
        "import os, sys, pathlib\n"
        "from kserve_lmcache.identity.arrival import await_model\n"
        "os.setgroups([])\n"
        f"os.setresgid({group}, {group}, {group}); os.setresuid({user}, {user}, {user})\n"
        f"await_model(pathlib.Path({str(link)!r}), {ASYNC!r}, limit=2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HERE / "runtime")},
    )
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "looks"),
    [
        ([], "/mnt/models"),
        (["--model_name=a"], "/mnt/models"),
        (["--model-dir=/a"], "/a"),
        (["--model_dir", "/a", "--max-model-len=4096"], "/a"),
        (["--model_id=/b"], "/b"),
        (["--model-id", "/b", "--model_dir=/a"], "/b"),
        (["--model_id=organisation/model"], None),
        (["--model", "organisation/model"], None),
        (["--model_id=s3://bucket/model"], None),
        (["--model_dir"], None),
    ],
    ids=str,
)
def test_which_directory_is_looked_at(
    arguments: list[str], looks: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr(
        "kserve_lmcache.identity.arrival.await_model",
        lambda directory, environ: found.append(str(directory)),
    )
    cli._look_for_model(arguments)
    assert found == ([looks] if looks else [])


def test_the_server_ends_before_vllm_is_imported(tmp_path: Path) -> None:
    message, empty = tmp_path / "termination-log", tmp_path / "models"
    message.touch()
    empty.mkdir()
    code = (
        "import sys\nfrom kserve_lmcache.cli.main import main\n"
        f"code = main(['--model_dir={empty}'])\n"
        "print(code, 'vllm' in sys.modules, 'torch' in sys.modules)\n"
    )
    variables = {"PYTHONHASHSEED": "0", "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    variables |= {"LMCACHE_TRACK_USAGE": "false", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            **variables,
            "PYTHONPATH": str(HERE / "runtime"),
            "TERMINATION_LOG": str(message),
        },
    )
    assert done.stdout == "2 False False\n", done.stderr
    expected = f"kserve-lmcache: error: {empty} is empty: the claim probably has no folder"
    assert message.read_text().startswith(expected)
