"""The shared state: keys, scripts, snapshots and claims in Redis or Valkey."""
