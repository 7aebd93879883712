"""In what replicas differ, and what the doctor makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kserve_lmcache.doctor.check import Status
from kserve_lmcache.doctor.replicas import Difference, differences, judge
from kserve_lmcache.server.announcement import INPUTS, Replica

NOW = 1_800_000_000.0
KEYS = {"hash_algorithm": "sha256_cbor", "hash_seed": "0", "chunk_size": 256}


def server(place: str, ago: float = 60, **inputs: Any) -> Replica:
    """A server that is like every other one but for ``inputs``."""
    all_inputs = {**KEYS, "dtype": "torch.bfloat16", "max_model_len": None, **inputs}
    namespace = "kv1-" + json.dumps(all_inputs)
    return Replica(all_inputs, namespace, "c" * 64, place, NOW - ago)


HERE = server("here:80")
COMMAND = Replica(KEYS, content="c" * 64)


def test_differences_are_named_with_both_values() -> None:
    there = server("there:80", hash_seed="1", dtype="torch.float16")
    assert differences(HERE, there) == (
        Difference("hash_seed", "1", "0"),
        Difference("dtype", "torch.float16", "torch.bfloat16"),
    )
    assert differences(COMMAND, there) == (Difference("hash_seed", "1", "0"),)


def test_the_same_namespace_is_alike_whatever_the_version() -> None:
    assert differences(HERE, replace(HERE, version="9.9", place="there:80")) == ()


def test_a_namespace_of_another_version_differs_by_nothing_that_has_a_name() -> None:
    there = replace(server("there:80"), namespace="kv2-0", version="9.9")
    assert differences(HERE, there) == (
        Difference("namespace", "kv2-0", HERE.namespace),
        Difference("version", "9.9", HERE.version),
    )
    finding = judge(HERE, [there], NOW)
    assert finding.status is Status.WARNING
    assert finding.fix.startswith("Give all of them the same version of kserve-lmcache, ")


def test_nobody_else() -> None:
    finding = judge(HERE, [], NOW)
    assert finding.status is Status.OK
    assert finding.evidence == "no other servers of this model in the last 24 h"
    assert judge(COMMAND, [], NOW).evidence == "no servers of this model in the last 24 h"


def test_all_alike() -> None:
    others = [server("b:80", ago=7300), server("c:80", ago=119), server("d:80", ago=3600)]
    finding = judge(HERE, others, NOW)
    assert (finding.status, finding.fix) == (Status.OK, "")
    assert finding.evidence == (
        "3 other servers of this model in the last 24 h, all alike: "
        "c:80 (119 s ago) and d:80 (60 min ago) and b:80 (2 h ago)"
    )


def test_a_command_knows_a_part() -> None:
    finding = judge(COMMAND, [server("a:80")], NOW)
    assert finding.status is Status.OK
    assert finding.evidence == (
        "1 server of this model in the last 24 h, all alike, here too in hash algorithm and "
        "hash seed and chunk size: a:80 (60 s ago)"
    )


def test_another_hash_seed() -> None:
    for own in (HERE, COMMAND):
        finding = judge(own, [server("pod-b:8080", ago=180, hash_seed="1")], NOW)
        assert finding.status is Status.WARNING
        assert finding.evidence == (
            "nothing is shared with pod-b:8080 (3 min ago): hash seed 1 there and 0 here"
        )
        assert finding.fix == (
            "Give all of them the same PYTHONHASHSEED, unless they are meant to differ."
        )


@pytest.mark.parametrize(
    ("name", "there", "said", "setting"),
    [
        ("hash_algorithm", "xxhash", "hash algorithm xxhash there", "pre_caching_hash_algorithm"),
        ("chunk_size", 512, "chunk size 512 there and 256 here", "chunk_size"),
        ("dtype", "torch.float32", "data type torch.float32 there", "--dtype"),
        ("max_model_len", 2048, "longest request 2048 there and none here", "--max-model-len"),
    ],
)
def test_whatever_differs_is_named_with_its_setting(
    name: str, there: Any, said: str, setting: str
) -> None:
    finding = judge(HERE, [server("b:80", **{name: there})], NOW)
    assert finding.status is Status.WARNING
    assert said in finding.evidence
    assert f"the same {setting}, " in finding.fix


def test_the_like_are_counted_and_the_unlike_are_grouped() -> None:
    unlike = [server(f"pod-{number}:80", ago=number, hash_seed="1") for number in range(1, 6)]
    others = [server("a:80"), *unlike, server("b:80", chunk_size=64)]
    assert judge(HERE, others, NOW).evidence == (
        "nothing is shared with pod-1:80 (1 s ago) and pod-2:80 (2 s ago) and pod-3:80 (3 s ago) "
        "and 2 more: hash seed 1 there and 0 here; "
        "nothing is shared with b:80 (60 s ago): chunk size 64 there and 256 here; "
        "1 of 7 differ in nothing that was compared"
    )


def test_differences_without_number_stay_short() -> None:
    others = [server("x" * 999, chunk_size=number, dtype="y" * 999) for number in range(999)]
    finding = judge(HERE, others, NOW)
    assert "nor with 996 more" in finding.evidence
    assert len(finding.evidence) < 2000


def test_servers_that_differ_from_each_other_in_what_a_command_does_not_know() -> None:
    others = [server("a:80", ago=9), server("b:80", ago=99, dtype="torch.float32")]
    finding = judge(COMMAND, others, NOW)
    assert finding.status is Status.WARNING
    assert finding.evidence == (
        "a:80 (9 s ago) shares nothing with b:80 (99 s ago): data type torch.float32 there and "
        "torch.bfloat16 at a:80; 1 of 2 differ in nothing that was compared"
    )
    assert "--dtype" in finding.fix


def test_an_input_without_a_name_is_called_by_its_own() -> None:
    own = replace(COMMAND, inputs={**COMMAND.inputs, "sparsity": 2})
    finding = judge(own, [server("a:80", sparsity=2)], NOW)
    assert finding.status is Status.OK
    assert "sparsity" in finding.evidence


def test_an_input_of_another_version_is_called_by_its_own_name() -> None:
    others = [server("a:80", sparsity=2), server("b:80", sparsity=3)]
    finding = judge(COMMAND, others, NOW)
    assert "sparsity" not in INPUTS
    assert "sparsity 3 there and 2 at a:80" in finding.evidence
