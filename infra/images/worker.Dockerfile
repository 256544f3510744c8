# The worker: everything a run needs, on CUDA 13. torch and ONNX Runtime find the CUDA libraries that pip brings, so
# NVIDIA's base image is the small one.
#     docker build --file infra/images/worker.Dockerfile --tag verdict/worker:0.1.0 .
ARG BASE=docker.io/nvidia/cuda:13.0.2-base-ubuntu24.04@sha256:2ab6381d970b211fb93853796dc6707eb8a72575a375c422b17cf4d8b2641701

FROM ${BASE} AS build
# Ubuntu's archive keeps the newest version of a package alone: a pin would break the build.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
  && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt /source/
COPY infra/images/install.sh /source/infra/images/
COPY infra/locks/tools.txt /source/infra/locks/
RUN /source/infra/images/install.sh worker /opt/verdict
COPY README.md LICENSE NOTICE /source/
COPY mlflow/policy.toml /source/mlflow/
COPY infra/prefect.yaml /source/infra/
COPY tasks /source/tasks
COPY flows /source/flows
# The second command compiles the kernels of a training for GPUs since A100; it needs none. A run copies them to its cache.
RUN /source/infra/images/install.sh package sbom /opt/verdict \
  && /opt/verdict/bin/python -m tasks.training.kernel_compiler

FROM ${BASE}
# Triton needs a C compiler for kernels that were not compiled above: of other encoders and other GPUs.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev python3 python3-dev \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --uid 10001 --user-group --home-dir /var/lib/verdict --shell /usr/sbin/nologin verdict \
  && install --directory --owner 10001 --group 10001 /var/lib/verdict
COPY --from=build /opt/verdict /opt/verdict
# Compiled kernels lie with the stores: they are loaded as libraries, and /tmp may forbid that.
ENV PATH=/opt/verdict/bin:$PATH HOME=/var/lib/verdict VERDICT_HOME=/var/lib/verdict \
  TRITON_CACHE_DIR=/var/lib/verdict/cache/triton TORCHINDUCTOR_CACHE_DIR=/var/lib/verdict/cache/inductor \
  PREFECT_HOME=/var/lib/verdict/prefect PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 DO_NOT_TRACK=true \
  ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /var/lib/verdict
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT []
CMD ["prefect", "worker", "start", "--pool", "verdict", "--type", "process", "--limit", "2", "--with-healthcheck"]
