"""The tree of a rule file: frozen dataclasses, a span on every node, equality by content alone."""

from .expr import *  # noqa: F403
from .program_tree import *  # noqa: F403
from .rule_tree import *  # noqa: F403
