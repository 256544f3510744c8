# MLflow's server: tracking, registry and the proxy in front of the object store, with accounts.
#     docker build --file infra/images/mlflow.Dockerfile --tag verdict/mlflow:0.1.0 .
ARG BASE=docker.io/library/python:3.11.15-slim-bookworm@sha256:b18992999dbe963a45a8a4da40ac2b1975be1a776d939d098c647482bcad5cba

FROM ${BASE} AS build
COPY pyproject.toml constraints.txt /source/
COPY infra/images/install.sh /source/infra/images/
COPY infra/locks/tools.txt /source/infra/locks/
RUN /source/infra/images/install.sh mlflow sbom /opt/verdict

FROM ${BASE}
RUN useradd --uid 10001 --user-group --home-dir /tmp --no-create-home --shell /usr/sbin/nologin verdict
COPY --from=build /opt/verdict /opt/verdict
COPY mlflow/basic_auth.ini /etc/mlflow/
COPY infra/images/accounts.py /opt/verdict/share/
ENV PATH=/opt/verdict/bin:$PATH HOME=/tmp MLFLOW_AUTH_CONFIG_PATH=/etc/mlflow/basic_auth.ini PYTHONUNBUFFERED=1 \
  PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 5000
STOPSIGNAL SIGTERM
ENTRYPOINT ["mlflow"]
CMD ["server", "--host", "0.0.0.0", "--port", "5000", "--app-name", "basic-auth", "--serve-artifacts"]
