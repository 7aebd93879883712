"""The names of KServe that :mod:`kserve_lmcache.compat.kserve` stands for exist where it looks.

Methods of KServe's servers that ours override are private as well; they must exist under the same
names, or they would be overridden without effect.
"""

from __future__ import annotations

import sys

import pytest
from kserve.protocol.rest.server import RESTServer

from kserve_lmcache.compat import kserve


def test_the_parser_leaves_the_arguments_of_the_process_alone() -> None:
    before = list(sys.argv)
    options = {
        option for action in kserve.argument_parser()._actions for option in action.option_strings
    }
    assert sys.argv == before
    assert {"--http_port", "--model_name", "--log_config_file"} <= options


@pytest.mark.parametrize(
    "name", ["_add_middlewares", "_register_endpoints", "_add_exception_handlers"]
)
def test_what_is_overridden_exists(name: str) -> None:
    assert callable(getattr(RESTServer, name))
