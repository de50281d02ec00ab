"""Networks that samples may leave early: from a graph with exits to one that skips the rest."""
