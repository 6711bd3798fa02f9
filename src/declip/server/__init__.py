"""The REST service: `create_app` makes it, `serve` runs it. Needs `pip install 'declip[serve]'`."""

from declip.server.app import create_app
from declip.server.limits import Limits
from declip.server.run import LOOPBACK, serve

__all__ = ["LOOPBACK", "Limits", "create_app", "serve"]
