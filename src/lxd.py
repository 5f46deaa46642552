"""Public module interface: the wrapper of one LXD instance. The charm itself imports it from ``engine.instance``."""

from engine.instance import LxdInstance

__all__ = ["LxdInstance"]
