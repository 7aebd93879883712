"""HTTP: the table of routes, the middleware in front of them, limits, and error responses."""
