"""Load tests and the side-by-side bench. Nothing here is imported by the balancer."""
