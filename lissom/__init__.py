"""lissom: compression rules as text, applied to trained PyTorch networks and verified."""
