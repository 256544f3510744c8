"""MLflow: runs, versions, aliases, audit log, retention. The only package that imports mlflow."""
