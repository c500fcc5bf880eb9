"""Share data, runs and comparisons between the tests."""
