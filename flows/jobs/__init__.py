"""Prefect flows and the steps that only they use."""
