# The inference service: `verdict serve` and the distribution verdict-inference; no torch, no Prefect, no training.
#     docker build --file infra/images/inference.Dockerfile --tag verdict/inference:0.1.0 .
ARG BASE=docker.io/library/python:3.11.15-slim-bookworm@sha256:b18992999dbe963a45a8a4da40ac2b1975be1a776d939d098c647482bcad5cba

FROM ${BASE} AS build
COPY pyproject.toml constraints.txt /source/
COPY infra/images/install.sh /source/infra/images/
COPY infra/locks/tools.txt /source/infra/locks/
COPY infra/inference/pyproject.toml /source/infra/inference/
RUN /source/infra/images/install.sh inference /opt/verdict
COPY README.md LICENSE NOTICE /source/
COPY mlflow/policy.toml /source/mlflow/
COPY infra/prefect.yaml /source/infra/
COPY infra/inference /source/infra/inference
COPY tasks /source/tasks
COPY flows /source/flows
RUN /source/infra/images/install.sh package runtime sbom /opt/verdict

FROM ${BASE}
# Some libraries ask the system for the user's name, so it has one.
RUN useradd --uid 10001 --user-group --home-dir /tmp --no-create-home --shell /usr/sbin/nologin verdict
COPY --from=build /opt/verdict /opt/verdict
ENV PATH=/opt/verdict/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
  ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["verdict"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8080", "--device", "cpu", "--no-page", "--allowed-host", "inference"]
