"""The REST service: `create_app` makes it, `serve` runs it. Needs `pip install 'declip[serve]'`."""

import fastapi  # noqa: F401 (first, so that who lacks the extra reads its name; jinja2 is in another one, too)

from declip.serve.app import create_app
from declip.serve.limits import Limits
from declip.serve.run import LOOPBACK, serve

__all__ = ["LOOPBACK", "Limits", "create_app", "serve"]
