"""The tree of a rule file: frozen nodes, a span on every one, equality by content alone."""

from .expr import *  # noqa: F403
from .program_tree import *  # noqa: F403
from .record import replace  # noqa: F401
from .rule_tree import *  # noqa: F403
