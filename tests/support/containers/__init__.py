"""A container engine, the image of the Dockerfile built on it, and containers of it."""

from tests.support.containers.engine import Engine, running_engine
from tests.support.containers.images import Images, build
from tests.support.containers.run import Container

__all__ = ["Container", "Engine", "Images", "build", "running_engine"]
