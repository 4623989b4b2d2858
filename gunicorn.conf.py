"""gunicorn -c gunicorn.conf.py lb.app

Settings are in lb.toml and in LB_… variables: see docs/settings.md. Anything gunicorn can set may be added
below or given on its command line.
"""

from lb import gunicorn_conf

# Called anew at every reload (HUP), which is when gunicorn runs this file again.
globals().update(gunicorn_conf.settings())
