# Prefect's server. The published image resolves fastapi anew for every build; this one takes what the tests ran with.
#     docker build --file infra/images/prefect.Dockerfile --tag verdict/prefect:0.1.0 .
ARG BASE=docker.io/library/python:3.11.15-slim-bookworm@sha256:b18992999dbe963a45a8a4da40ac2b1975be1a776d939d098c647482bcad5cba

FROM ${BASE} AS build
COPY pyproject.toml constraints.txt /source/
COPY infra/images/install.sh /source/infra/images/
COPY infra/locks/tools.txt /source/infra/locks/
RUN /source/infra/images/install.sh prefect sbom /opt/verdict

FROM ${BASE}
# The server's folder holds the leases of concurrency limits, which have to outlive the server.
RUN useradd --uid 10001 --user-group --home-dir /var/lib/prefect --shell /usr/sbin/nologin verdict \
  && install --directory --owner 10001 --group 10001 /var/lib/prefect
COPY --from=build /opt/verdict /opt/verdict
ENV PATH=/opt/verdict/bin:$PATH HOME=/var/lib/prefect PREFECT_HOME=/var/lib/prefect PYTHONUNBUFFERED=1 \
  PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/prefect
EXPOSE 4200
STOPSIGNAL SIGTERM
ENTRYPOINT ["prefect"]
CMD ["server", "start", "--host", "0.0.0.0", "--port", "4200"]
