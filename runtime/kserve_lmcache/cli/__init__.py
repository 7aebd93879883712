"""The command line: one module a command, which parses flags and calls the other folders.

May import every other folder; no folder imports ``cli``.
"""
