"""Training: recover what a rewrite cost, distil, and keep what rules promised."""
