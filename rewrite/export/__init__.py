"""Files for other runtimes, each compared with the model before it is in its place."""
