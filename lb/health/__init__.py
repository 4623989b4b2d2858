"""The health daemon: probes every backend once for the whole fleet and publishes the verdicts."""
