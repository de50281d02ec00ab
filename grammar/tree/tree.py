"""The tree of a rule file: frozen nodes, a span on every one, equality by content alone."""

from .expr import *  # noqa: F403
from .programs import *  # noqa: F403
from .record import replace  # noqa: F401
from .rules import *  # noqa: F403
