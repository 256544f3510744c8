"""Prefect servers, deployments and the local stack."""
