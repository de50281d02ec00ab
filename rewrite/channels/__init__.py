"""Dimension classes: which positions of which axes stand and fall together, and cutting them.

`analyse` follows features through a captured graph, `classes` sorts them, `cut` removes them.
"""
