"""The status of offloading: its state, its tiers and its last events.

May import whatever ``server`` may.
"""
