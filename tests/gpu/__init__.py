"""``make test-gpu``: one script for a machine with a GPU that reaches no package index.

``docs/contributing/gpu.md`` says how to run it. The modules of this folder need Python alone;
those of ``steps`` run in the environment that ``wheels`` installs.
"""
