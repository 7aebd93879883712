"""The one table of metrics, their values in all processes, and the times of a server's start.

May import ``compat`` and the modules of the root.
"""
