"""The only place that imports names of vLLM, LMCache and KServe that are private or have moved.

One module or folder a project. The contract tests test this folder. May import ``errors``,
``redaction`` and ``logs`` alone.
"""
