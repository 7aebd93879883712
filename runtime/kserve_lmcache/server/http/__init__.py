"""The HTTP surface: which routes there are, what guards them, and how errors look."""
