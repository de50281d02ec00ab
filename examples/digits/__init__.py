"""The demo model: a small digit reader trained in seconds on data that scikit-learn carries."""
