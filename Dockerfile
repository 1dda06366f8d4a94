# An image that serves indexes: no torch, no compiler, no root.
#
#   docker build -t clipdistill .
#   docker run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --user "$(id -u):$(id -g)" \
#     -p 127.0.0.1:8000:8000 -v "$PWD:/data:ro" clipdistill photos.index --model tiny-onnx --keys keys.txt
#
# Everything after the image's name goes to `clipdistill serve`. The index and the model lie below /data, which may be
# read-only; /tmp is the one place that is written to. keys.txt is made with serve --new-key,
# and only its owner may read it. Any other verb:
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" --entrypoint clipdistill clipdistill index sync photos.index
#
# To pin the base to the byte: --build-arg BASE=docker.io/library/python:3.11-slim-bookworm@sha256:...
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /build
RUN python -m venv /opt/clipdistill
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY src src
RUN ["/opt/clipdistill/bin/python", "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check", \
     "--constraint", "constraints.txt", ".[serve,milvus]"]

FROM ${BASE}
LABEL org.opencontainers.image.title="clipdistill" \
      org.opencontainers.image.description="Search pictures by words and by pictures, on a CPU." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 clipdistill && \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin clipdistill
COPY --from=build /opt/clipdistill /opt/clipdistill
ENV PATH=/opt/clipdistill/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /data
USER 10001:10001
EXPOSE 8000
# The model is loaded before /ready answers 200. The address is asked directly, whatever proxy the environment names.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "import http.client, sys; server = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); server.request('GET', '/ready'); sys.exit(server.getresponse().status != 200)"]
ENTRYPOINT ["clipdistill", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--help"]
