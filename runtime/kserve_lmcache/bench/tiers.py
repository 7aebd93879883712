"""Where prompt tokens came from, by an endpoint's ``/metrics``.

The first of these that an endpoint has, the finer ones first:

1. ``kserve_lmcache_prompt_tokens_total{source=…}``: this package's own, by tier.
2. ``vllm:prompt_tokens_by_source_total{source=…}``: vLLM's prefix cache, and its KV connector
   (which is LMCache: its local and its remote tier together).
3. ``vllm:prefix_cache_hits_total`` and ``vllm:external_prefix_cache_hits_total``, each beside its
   ``…_queries_total``.

Where there is none of them, the usage of the answers says how much was cached, and not where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client.parser import text_string_to_metric_families

from kserve_lmcache.bench.records import Record, Scrape

COMPUTED = "computed"
PREFIX, CONNECTOR, ANY = "prefix cache", "connector", "cache"

_OURS = "kserve_lmcache_prompt_tokens_total"
_BY_SOURCE = "vllm:prompt_tokens_by_source_total"
_VLLM_SOURCES = {
    "local_compute": COMPUTED,
    "local_cache_hit": PREFIX,
    "external_kv_transfer": CONNECTOR,
}
_QUERIES, _HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
_EXTERNAL_HITS = "vllm:external_prefix_cache_hits_total"
# Bytes, by the name of the counter: this package's, and LMCache's.
_BYTES = ("kserve_lmcache_", "lmcache:num_remote_")


def counters(text: str) -> dict[str, float]:
    """The counters of a scrape that this module reads, by ``tokens SOURCE`` and ``bytes NAME``.

    Args:
        text: in Prometheus's text format.

    Raises:
        ValueError: it is of no such format.
    """
    named: dict[str, dict[str, float]] = {}
    moved: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            source = sample.labels.get("source", "")
            totals = named.setdefault(sample.name, {})
            totals[source] = totals.get(source, 0.0) + sample.value
            if sample.name.startswith(_BYTES) and "bytes_total" in sample.name:
                labels = [value for key, value in sorted(sample.labels.items()) if _tells(key)]
                name = " ".join(["bytes", sample.name, *labels])
                moved[name] = moved.get(name, 0.0) + sample.value
    return {**{f"tokens {name}": value for name, value in _tokens(named).items()}, **moved}


def _tells(label: str) -> bool:
    return label in ("tier", "direction", "source")


def _tokens(named: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    if _OURS in named:
        return {source.replace("_", " "): value for source, value in named[_OURS].items()}
    if _BY_SOURCE in named:
        return {
            _VLLM_SOURCES.get(source, source): value for source, value in named[_BY_SOURCE].items()
        }
    if _QUERIES in named and _HITS in named:
        asked, local = (sum(named[name].values()) for name in (_QUERIES, _HITS))
        external = sum(named.get(_EXTERNAL_HITS, {}).values())
        return {PREFIX: local, CONNECTOR: external, COMPUTED: asked - local - external}
    return {}


def shares(
    scrapes: Sequence[Scrape], records: Sequence[Record], endpoint: str, phase: str
) -> dict[str, float]:
    """Shares of the prompt tokens by where they came from; they add up to 1.

    By the counters' growth from the first to the last scrape of the phase, over all replicas; else
    by the usage of the answers. Empty where neither says.
    """
    grown = growth(scrapes, endpoint, phase)
    tokens = {
        name.removeprefix("tokens "): value
        for name, value in grown.items()
        if name.startswith("tokens ")
    }
    if not sum(tokens.values()):
        mine = [
            record
            for record in records
            if (record.endpoint, record.phase) == (endpoint, phase)
            and record.error is None
            and record.cached_tokens is not None
        ]
        cached = float(sum(record.cached_tokens or 0 for record in mine))
        total = float(sum(record.prompt_tokens or record.length for record in mine))
        tokens = {ANY: cached, COMPUTED: total - cached} if mine else {}
    whole = sum(tokens.values())
    return {name: value / whole for name, value in tokens.items()} if whole else {}


def growth(scrapes: Sequence[Scrape], endpoint: str, phase: str) -> dict[str, float]:
    """How much each counter grew in a phase, all replicas together.

    A counter that fell belongs to a server that started anew: what it has now is its growth.
    """
    total: dict[str, float] = {}
    last: dict[int, dict[str, float]] = {}
    for scrape in scrapes:
        if (scrape.endpoint, scrape.phase) != (endpoint, phase):
            continue
        before = last.get(scrape.replica)
        if before is not None:
            for name, value in scrape.counters.items():
                step = value - before.get(name, 0.0)
                total[name] = total.get(name, 0.0) + (step if step >= 0 else value)
        last[scrape.replica] = scrape.counters
    return total
