# The node as an image. How it is run: docs/operations.md, "In a container".
#
#   docker build -t indexify-dataplane .
#
# BASE is any Debian or Ubuntu with Python 3.11 or newer and its venv module; the guest bundle that starts in every
# sandbox is made from that very Python.
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
COPY . /source
RUN python3 -m venv /opt/indexify-dataplane \
 && /opt/indexify-dataplane/bin/pip install --no-cache-dir "/source[s3,uvloop]"

FROM ${BASE}
# iptables brings ip6tables and both back ends; util-linux has nsenter, setpriv and setsid.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates iptables util-linux \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/indexify-dataplane /opt/indexify-dataplane
ENV PATH=/opt/indexify-dataplane/bin:$PATH PYTHONUNBUFFERED=1
# The store is ./dataplane-state by default: it must not end up in the container's own file system.
WORKDIR /var/lib/indexify
EXPOSE 8095 8100
STOPSIGNAL SIGTERM
ENTRYPOINT ["indexify-dataplane"]
