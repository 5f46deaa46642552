"""A stand-in for GitHub that speaks HTTP: ``serve`` starts one."""

from sandbox.github.server import GitHub, serve
from sandbox.github.state import Settings

__all__ = ["GitHub", "Settings", "serve"]
