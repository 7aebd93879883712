"""Checks of everything the server needs before it starts, and the report of them."""
