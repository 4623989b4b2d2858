"""The way to the backends: connections, HTTP/1.1 framing, the requests adapter, forwarding."""
