"""No password of a store is in any text that this package makes, whatever the URL looks like."""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote

import prometheus_client
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kserve_lmcache.cli import config, doctor
from kserve_lmcache.cli import main as cli
from kserve_lmcache.config import engine_file, remote_tier
from kserve_lmcache.config.configuration import Configuration, Value
from kserve_lmcache.config.credentials import remote_of
from kserve_lmcache.config.resolve import Flags, resolve
from kserve_lmcache.config.rules import FAST
from kserve_lmcache.engine.plan import OffloadPlan, differing_values
from kserve_lmcache.errors import ConfigurationError
from kserve_lmcache.logs import JSONFormatter
from kserve_lmcache.redaction import redact_logs
from kserve_lmcache.server import termination_log
from kserve_lmcache.server.status import report
from tests.support.configuration import NOWHERE

# In no text by accident, at both ends of every password.
MARK = "zQ7x"
passwords = st.text(
    st.one_of(st.sampled_from("/#?'@\":,&=%; \\*{}|<>$()[]"), st.characters(codec="utf-8")),
    max_size=8,
).map(lambda text: f"{MARK}{text}{MARK}".replace("\0", ""))
SHAPES = (
    "redis://:{p}@127.0.0.1:6379",
    "redis://user:{p}@127.0.0.1:1/0",
    "redis://{p}@127.0.0.1:1",
    "rediss://:12{p}@127.0.0.1:1?ssl_cert_reqs=none",
    "redis-sentinel://:{p}@127.0.0.1:1,127.0.0.1:2/main",
    "unix://:{p}@/nowhere",
    "unix:///nowhere?password={p}",
    "valkey://127.0.0.1:1/0/{p}",
    "redis://127.0.0.1:1,password={p}",
    "lm://:{p}@127.0.0.1:1",
    "s3://key:{p}@bucket",
    "redi://:{p}@h",
    ":{p}@h:6379",
    "h:6379,password={p}",
    "redis:{p}@h",
)
urls = st.builds(
    lambda shape, password, encoded: shape.format(
        p=quote(password, safe="") if encoded else password
    ),
    st.sampled_from(SHAPES),
    passwords,
    st.booleans(),
)
SLOW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@contextmanager
def captured_log() -> Iterator[io.StringIO]:
    """What is logged, as text and as JSON."""
    stream, logger = io.StringIO(), logging.getLogger("lmcache.test")
    handlers = [logging.StreamHandler(stream), logging.StreamHandler(stream)]
    handlers[1].setFormatter(JSONFormatter())
    logger.handlers, logger.propagate, factory = handlers, False, logging.getLogRecordFactory()
    try:
        yield stream
    finally:
        logging.setLogRecordFactory(factory)
        logger.handlers = []


def configuration_of(environ: dict[str, str], device: str = "cpu") -> Configuration:
    configuration = resolve(Flags(), environ, device, NOWHERE, FAST)
    configuration.values.setdefault("max_local_cpu_size", Value(1.0, "test"))
    return configuration


def texts_of(configuration: Configuration) -> str:
    """What `config`, `GET /offload` and the errors say of a configuration."""
    monitor = cast(Any, Monitor())
    plan = OffloadPlan(configuration, reason="test")
    return "\n".join(
        [
            json.dumps(configuration.shown().encode()),
            config.as_yaml(configuration.shown()),
            config.explain(configuration.shown(), "remote_url"),
            json.dumps(report.status(monitor, plan, "m"), default=str),
            str(ConfigurationError(configuration.problems)),
            repr(remote_of(configuration)),
        ]
    )


class Monitor(SimpleNamespace):
    """As much of a monitor as the report reads."""

    def __init__(self) -> None:
        history = SimpleNamespace(
            hit_ratios=lambda *_: {},
            last=SimpleNamespace(prompt_tokens={}, plain={}),
            first_token_seconds=dict,
            events=list,
            curve=list,
        )
        super().__init__(state="off", since=0.0, reason="test", history=history)


@SLOW
@given(url=urls)
def test_of_a_url(url: str) -> None:
    configuration = configuration_of({"LMCACHE_REMOTE_URL": url})
    remote_of(configuration)
    assert MARK not in texts_of(configuration)


@SLOW
@given(url=urls, password=passwords)
def test_of_what_lmcache_is_told_and_logs(url: str, password: str) -> None:
    """LMCache logs its whole configuration, the URL, and errors with both."""
    environ = {"LMCACHE_REMOTE_URL": url, "LMCACHE_REMOTE_PASSWORD": password}
    for connector in ("kserve", "lmcache"):
        environ["LMCACHE_REMOTE_CONNECTOR"] = connector
        configuration = configuration_of(environ)
        remote_tier.complete(configuration)
        remote = remote_of(configuration)
        if remote is None or MARK in (remote.username or ""):  # with a password, it is a user
            return
        with tempfile.TemporaryDirectory() as directory, captured_log() as log:
            path = Path(directory) / "lmcache.yaml"
            limits = remote_tier.limits_of(configuration)
            engine_file.write(configuration.lmcache_values(), remote, path, limits)
            if connector == "kserve":  # LMCache does not learn the password at all
                assert MARK not in path.read_text()
            redact_logs(engine_file.secrets_in(path))
            values = yaml.safe_load(path.read_text())
            logger = logging.getLogger("lmcache.test")
            logger.error("Creating connector for URL: %s", values.get("remote_url"))
            logger.error("LMCache Configuration: %s", values)
            logger.error(json.dumps(values))
            try:
                raise ValueError(str(values))
            except ValueError:
                logger.exception("It failed")
            assert MARK not in log.getvalue()
            assert MARK not in "".join(differing_values(path, {"remote_url": url}))


@settings(SLOW, max_examples=12)
@given(url=urls, password=passwords)
def test_of_the_doctor(url: str, password: str) -> None:
    variables = {"LMCACHE_REMOTE_URL": url, "LMCACHE_REMOTE_PASSWORD": password}
    variables["PROMETHEUS_MULTIPROC_DIR"] = str(NOWHERE)  # no server runs
    for name, value in variables.items():
        os.environ[name] = value.encode("utf-8", "replace").decode()
    try:
        for arguments in (["--timeout=2"], ["--json", "--timeout=2"]):
            text, _ = doctor.run(arguments)
            assert MARK not in text
    finally:
        for name in variables:
            del os.environ[name]


def test_of_the_end_and_the_metrics(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    message = f"vLLM refuses redis://:{MARK}/@h and {{'remote_password': '{MARK}'}}"

    def fail(command: str, arguments: list[str]) -> int:
        raise cli.KServeLMCacheError(message)

    told = tmp_path / "termination-log"
    told.touch()
    monkeypatch.setattr(cli, "_run", fail)
    monkeypatch.setenv(termination_log.VARIABLE, str(told))
    assert cli.main(["serve"]) == 1
    assert "vLLM refuses redis://:***@h" in told.read_text()
    assert MARK not in told.read_text() + capsys.readouterr().err
    assert MARK not in prometheus_client.generate_latest().decode()
