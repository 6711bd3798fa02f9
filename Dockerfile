# The REST service for the CPU, without torch, with HEIC: docs/serve.md, "In a container". DECLIP_TOKEN is a long random
# word; without one, and without --no-token at the end of the command, the service does not start.
#
#     docker build --tag declip .
#     docker run --rm --read-only --tmpfs /tmp --stop-timeout 40 --publish 127.0.0.1:8000:8000 --env DECLIP_TOKEN declip

FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src ./src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
RUN python -m venv /opt/declip \
 && wheel="$(ls /wheels/declip-*.whl)" \
 && /opt/declip/bin/pip install --no-cache-dir "${wheel}[serve]"

# Of the same image as above: the environment's Python is the one that it was made with.
FROM python:3.12-slim
COPY --from=build /opt/declip /opt/declip
ENV PATH=/opt/declip/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# More options come after the image's name. Nothing is downloaded.
ENTRYPOINT ["declip", "serve", "--host", "0.0.0.0", "--offline"]
