"""What config uses of LMCache's private tables is there, and behaves as config expects."""

from __future__ import annotations

import subprocess
import sys

import lmcache.v1.config as imported
import pytest
from lmcache.v1.storage_backend.cache_policy import POLICY_MAPPING

from kserve_lmcache.compat.lmcache import configuration


def test_every_row_of_the_table_has_a_type_and_a_converted_default() -> None:
    rows = configuration.definitions()
    assert rows["chunk_size"].type is int
    assert rows["chunk_size"].default == 256
    assert rows["local_disk"].convert is not None
    assert rows["local_disk"].convert("file:///a/") == "/a/"


def test_a_former_name_leads_to_a_key() -> None:
    aliases = configuration.aliases()
    assert aliases["external_backends"] == "storage_plugins"
    assert "storage_plugins" in configuration.definitions()


def test_variables_outside_the_table_are_in_the_source() -> None:
    found = configuration.variables_in_source()
    assert {"LMCACHE_LOG_LEVEL", "LMCACHE_TRACK_USAGE", "LMCACHE_EC_"} <= found


def test_effective_values_include_defaults_and_changes() -> None:
    values = configuration.effective_values({"chunk_size": 64, "enable_blending": True})
    assert (values["chunk_size"], values["local_cpu"]) == (64, True)
    assert values["save_unfull_chunk"] is True  # blending needs it


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"enable_controller": True}, "controller_pull_url is required"),
        ({"enable_p2p": True}, "assert self.enable_controller"),  # an assertion without a text
    ],
)
def test_refused_values_have_a_reason(values: dict[str, bool], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        configuration.effective_values(values)


def test_the_tables_are_those_of_the_imported_package() -> None:
    table = configuration.definitions()
    assert list(table) == list(imported._CONFIG_DEFINITIONS)
    for name, row in imported._CONFIG_DEFINITIONS.items():
        assert (table[name].type, table[name].default) == (row["type"], row["default"])
    assert configuration.aliases() == imported._CONFIG_ALIASES
    assert configuration.cache_policies() == tuple(POLICY_MAPPING)
    values = {"chunk_size": 64, "enable_blending": True, "extra_config": {"a": 1}}
    effective = dict(configuration.effective_values(values))
    expected = imported.LMCacheEngineConfig.from_defaults(**values).validate().to_dict()
    for each in (effective, expected):
        del each["lmcache_instance_id"]  # random
    assert effective == expected


def test_the_adapters_are_those_of_the_imported_package() -> None:
    light, heavy = (
        sorted((type(each).__name__, each.schema) for each in found)
        for found in (configuration._light_adapters(), configuration._imported_adapters())
    )
    assert light == heavy
    for url in (
        "redis://h:1",
        "rediss://h:1",
        "unix:///s",
        "fs://h/x",
        "plugin://",
        "bigtable://x",
    ):
        taken = any(each.can_parse(url) for each in configuration._imported_adapters())
        assert configuration.takes_remote_url(url) is taken, url


def test_nothing_of_it_imports_a_package() -> None:
    probe = (
        "import sys; from kserve_lmcache.compat import vllm;"
        "from kserve_lmcache.compat.lmcache import configuration as c;"
        "c.definitions(), c.aliases(), c.variables_in_source(), c.effective_values({});"
        "c.cache_policies(), c.remote_schemes(), vllm.knows_hash_algorithm('sha256_cbor');"
        "heavy = ('vllm', 'torch', 'lmcache', 'kserve', 'numpy', 'requests', 'prometheus_client');"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_names_of_policies_and_schemes() -> None:
    assert "LRU" in configuration.cache_policies()
    assert {"lm://", "redis://", "s3://"} <= set(configuration.remote_schemes())
    assert configuration.takes_remote_url("lm://server:1")
    assert not configuration.takes_remote_url("nothing://server:1")
