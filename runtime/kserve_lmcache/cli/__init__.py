"""The command line: one module for each command, which parses flags and calls other folders.

May import every other folder; no folder imports ``cli``.
"""
