"""Makes MLflow's accounts; the image of the tracking server carries it, and running it again changes passwords.

    MLFLOW_TRACKING_URI=http://mlflow:5000 python accounts.py

`retrain` writes, `reader` reads. Whoever creates an experiment or a model owns it, so those that the product writes to
are created here, by `retrain`, before anybody else can take their names.
"""

import os
import sys
from typing import Any

import requests

MODEL = os.environ.get("VERDICT_MODEL_NAME") or "acceptability"
SUFFIX = "" if MODEL == "acceptability" else f".{MODEL}"  # tasks/inference/bundle.py
EXPERIMENTS = tuple(f"{name}{SUFFIX}" for name in ("verdict", "verdict-history", "verdict-sweeps"))
DESCRIPTION = "Sentence acceptability; load it by alias, @champion."
ACCOUNTS = {"retrain": "RETRAIN_PASSWORD", "reader": "READER_PASSWORD"}
ADMIN = ("MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD")
ADDRESS = "MLFLOW_TRACKING_URI"
REQUEST_TIMEOUT_S = 30  # seconds for one answer
THERE_ALREADY = "RESOURCE_ALREADY_EXISTS"


def main() -> None:
    """Make accounts, experiments and model where they are missing; exit 1 where that cannot be done."""
    missing = [name for name in (ADDRESS, *ADMIN, *ACCOUNTS.values()) if not os.environ.get(name)]
    if missing:
        sys.exit(f"error: {', '.join(missing)} must be set; infra/README.md says what for")
    admin, retrain = (os.environ[ADMIN[0]], os.environ[ADMIN[1]]), ("retrain", os.environ[ACCOUNTS["retrain"]])
    try:
        for name, variable in ACCOUNTS.items():
            keep_account(admin, name, os.environ[variable])
        for name in EXPERIMENTS:
            ask("POST", "experiments/create", retrain, name=name)
        ask("POST", "registered-models/create", retrain, name=MODEL, description=DESCRIPTION)
    except requests.RequestException as error:
        sys.exit(f"error: {os.environ[ADDRESS]} failed ({error}); is it up, and is the administrator's password right?")
    print(f"{os.environ[ADDRESS]}: accounts {', '.join(ACCOUNTS)}")


def keep_account(admin: tuple[str, str], name: str, password: str) -> None:
    """Make an account, or give the one that is there this password."""
    if not ask("POST", "users/create", admin, username=name, password=password):
        ask("PATCH", "users/update-password", admin, username=name, password=password)


def ask(method: str, path: str, account: tuple[str, str], **body: Any) -> bool:
    """Ask the server as somebody; tell whether it did what it was asked, False where that is there already.

    Raises:
        requests.RequestException: if it does not answer, or refuses.
    """
    url = f"{os.environ[ADDRESS].rstrip('/')}/api/2.0/mlflow/{path}"
    reply = requests.request(method, url, json=body, auth=account, timeout=REQUEST_TIMEOUT_S)
    if reply.status_code == 400 and THERE_ALREADY in reply.text:
        return False
    reply.raise_for_status()
    return True


if __name__ == "__main__":
    main()
