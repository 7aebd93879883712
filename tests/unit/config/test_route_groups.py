"""The groups of routes, of the setting and of vLLM's variable."""

from __future__ import annotations

import pytest

from kserve_lmcache.config.settings import route_groups

VARIABLE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


@pytest.mark.parametrize(
    ("value", "groups"),
    [("1", ("sleep", "lora")), (" True ", ("sleep", "lora")), ("0", ("sleep",)), ("", ("sleep",))],
)
def test_vllms_variable_turns_its_group_on(value: str, groups: tuple[str, ...]) -> None:
    assert route_groups("sleep", {VARIABLE: value}) == groups


def test_a_group_that_both_turn_on_comes_once() -> None:
    assert route_groups(" lora, sleep,", {VARIABLE: "1"}) == ("lora", "sleep")
    assert route_groups(None, {}) == ()
