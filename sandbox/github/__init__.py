"""A stand-in for GitHub that speaks HTTP: ``serve`` starts one."""

from sandbox.github.server import GitHub, Settings, serve

__all__ = ["GitHub", "Settings", "serve"]
