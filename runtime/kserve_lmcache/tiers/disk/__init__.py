"""A store in a directory of this machine, whose size is bounded."""
