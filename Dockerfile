# One image for all processes; the first word of the command says which:
#
#   docker run IMAGE             the balancer (`lb serve`)
#   docker run IMAGE health      the health daemon (`lb-health`)
#   docker run IMAGE status      any other command of `lb`
#
# How to run it: deploy/README.md.

FROM python:3.13-slim-trixie AS build

# gunicorn_h1c comes as source and is compiled here.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
# The versions hold for what builds the package, too: older releases of pip read the first, newer the second.
ENV PIP_CONSTRAINT=/src/constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_INPUT=1

# What lb needs is a layer of its own: it stays when only lb changes.
COPY constraints.txt pyproject.toml ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && python -m venv --without-pip /opt/lb \
    && pip --python /opt/lb/bin/python install -r requirements.txt

# 1: the hot path is compiled; 0: all of lb is plain Python.
ARG LB_COMPILE=1
COPY hatch_build.py README.md LICENSE CHANGELOG.md ./
COPY redis redis
COPY lb lb
RUN pip wheel --no-deps --wheel-dir /wheels . \
    && pip --python /opt/lb/bin/python install --no-deps /wheels/*.whl \
    && pip --python /opt/lb/bin/python check


FROM python:3.13-slim-trixie

LABEL org.opencontainers.image.title="lb" \
      org.opencontainers.image.description="An HTTP load balancer whose workers share one exact view of the fleet" \
      org.opencontainers.image.licenses="MIT"

# A number, so that Kubernetes can see that it is not root.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /run/lb --shell /usr/sbin/nologin lb \
    && install -d -o lb -g lb -m 0700 /run/lb \
    && install -d /etc/lb

COPY --from=build /opt/lb /opt/lb
COPY deploy/entrypoint.sh /usr/local/bin/lb-entrypoint

ENV PATH=/opt/lb/bin:$PATH \
    LB_RUNTIME_DIR=/run/lb/store

# Where lb.toml is looked for.
WORKDIR /etc/lb
USER 10001:10001

# Clients. The control side stays on loopback inside the container, where `lb healthcheck` asks it.
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["lb-entrypoint", "healthcheck"]
ENTRYPOINT ["lb-entrypoint"]
CMD ["serve"]
