"""Orchestration: Prefect flows and the `verdict` command that starts them."""
