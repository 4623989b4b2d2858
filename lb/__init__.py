"""lb: an HTTP load balancer whose workers share one exact view of the fleet."""

__version__ = "0.1.0"
