# One image for every role: `logpipe serve` runs them all with the embedded engine, ROLE chooses.
FROM python:3.13-slim AS build
WORKDIR /src
# What others have made is installed as `make lock` has seen it, and nothing of it is run to do so.
COPY requirements.lock requirements-build.lock ./
RUN python3 -m venv /opt/build && python3 -m venv /opt/logpipe \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements-build.lock \
    && /opt/logpipe/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY logpipe logpipe
RUN /opt/build/bin/pip wheel --no-cache-dir --no-index --no-build-isolation --no-deps --wheel-dir /opt/wheel . \
    && /opt/logpipe/bin/pip install --no-cache-dir --no-index --no-deps /opt/wheel/*.whl \
    && /opt/logpipe/bin/pip check && /opt/logpipe/bin/pip uninstall --yes pip

FROM python:3.13-slim
COPY --from=build /opt/logpipe /opt/logpipe
# The embedded engine's folder, for the one case that needs it: all roles in one container.
RUN mkdir -p /data && chown 10001:10001 /data
ENV PATH=/opt/logpipe/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    DATA_DIR=/data
USER 10001:10001
EXPOSE 8080 8081 8082
HEALTHCHECK --interval=5s --timeout=4s --start-period=10s --retries=3 CMD ["logpipe", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["logpipe"]
CMD ["serve"]
