"""A small backend that tells who answered: for the demo, the tests and the load tests."""
