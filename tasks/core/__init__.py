"""Settings, policy, errors, files, logs: what every package may use."""
