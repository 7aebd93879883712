"""Uses of what vLLM is about to remove, in the processes that tests start.

In pytest's own process, ``filterwarnings`` in ``pyproject.toml`` makes them errors.
"""

from __future__ import annotations

import re

# PYTHONWARNINGS compares the beginning of a message, and no pattern. These begin what vLLM says of
# its old modules, and of calls without an argument that it will require.
_MESSAGES = ("`vllm.", "The 'supported_tasks' parameter")
DEPRECATIONS_ARE_ERRORS = ",".join(f"error:{each}:DeprecationWarning" for each in _MESSAGES)

# vLLM's log has lines for flags and variables: "WARNING 11-29 15:30:10 [arg_utils.py:12] …".
# Python's own lines for warnings begin with the module's path: "/…/vllm/x.py:12: UserWarning: …".
_LOGGED = re.compile(r"WARNING \S+ \S+ \[\S+:\d+\] (.*)")
_WARNED = re.compile(r"/vllm/\S+:\d+: (?:Deprecation|User)Warning: (.*)")
# Said of every adapter, whatever it is.
_OF_NO_USE = "different tokenizers for different LoRAs"


def deprecations(log: str) -> list[str]:
    """The lines of a server's log in which vLLM says that it will remove something in use."""
    found = []
    for line in log.splitlines():
        match = _LOGGED.search(line) or _WARNED.search(line)
        if match and "deprecated" in match[1].lower() and _OF_NO_USE not in match[1]:
            found.append(line)
    return found
