"""The steps that run in the environment of the server."""
