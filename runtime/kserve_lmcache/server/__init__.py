"""The server: KServe's model server, its life cycle, and its HTTP routes.

``http`` holds middleware, routes, errors and limits; ``status`` holds the state of offloading and
its page. May import ``engine`` and the folders below it.
"""
