"""The compose file, the Dockerfiles and their scripts: schemas, linters, and laws; each law refuses a broken copy."""

import ast
import copy
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from manifests import DOCKERFILES, IMAGES, INFRA, PROJECT, ROOT, VERSION, Document, last, listed, read_compose
from manifests import read_dockerfile as read

BIN = Path(sys.executable).parent
DIGEST = r"@sha256:[0-9a-f]{64}$"
REQUIRED = re.compile(r"\$\{([A-Z_]+):\?[^}]+\}")
VARIABLE = re.compile(r"\$\{([A-Z_]+)")
SECRET = re.compile(r"(PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY|TOKEN)")
EPHEMERAL = {"accounts"}  # ends by itself
OPEN = {"storage": {"postgres", "store", "prefect", "mlflow"}}  # who may be on the network of the stores
# Set by the product for processes that it starts itself.
OWN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}


def images_are_pinned(compose: Document) -> list[str]:
    """An image of ours has the project's version, any other a tag and a digest."""
    found = []
    for name, service in compose["services"].items():
        image = service["image"]
        ours = image.startswith("${REGISTRY:-verdict}/")
        if not (image.endswith(f":{VERSION}") if ours else re.search(r":[\w.-]+" + DIGEST, image)):
            found.append(f"{name}: image {image} is not pinned")
    return found


def services_are_locked_up(compose: Document) -> list[str]:
    """No service runs as root, writes to its image, keeps a capability, or takes more than its share."""
    found = []
    for name, service in compose["services"].items():
        built = service["image"].startswith("${REGISTRY")
        locked = service["read_only"] is True and service["cap_drop"] == ["ALL"]
        if not locked or "no-new-privileges:true" not in service["security_opt"] or service.get("privileged"):
            found.append(f"{name} is not locked up")
        if not built and not re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(service.get("user"))):
            found.append(f"{name} runs as root")
        limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
        if set(limits) != {"cpus", "memory", "pids"}:
            found.append(f"{name} has no limit of {sorted({'cpus', 'memory', 'pids'} - set(limits))}")
        if service.get("restart") not in ("unless-stopped", "on-failure:3"):
            found.append(f"{name} is not started again")
    return found


def services_wait_for_health(compose: Document) -> list[str]:
    """Whoever needs a service waits until it is healthy, or done; whatever stays is looked at."""
    found, services = [], compose["services"]
    for name, service in services.items():
        if name not in EPHEMERAL and "test" not in service.get("healthcheck", {}):
            found.append(f"{name} has no health check")
        for needed, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if needed in EPHEMERAL else "service_healthy"
            if needed not in services or how["condition"] != wanted:
                found.append(f"{name} waits wrongly for {needed}")
    return found


def secrets_come_from_outside(compose: Document) -> list[str]:
    """A secret is a variable that must be set; none has a value or a default here."""
    return [
        f"{name}: {key} is not taken from a required variable"
        for name, service in compose["services"].items()
        for key, value in service["environment"].items()
        if SECRET.search(key) and not REQUIRED.fullmatch(str(value))
    ]


def names_are_declared(compose: Document) -> list[str]:
    """Volumes and networks that are used are declared, and the other way round; stores are closed in."""
    services = compose["services"].items()
    mounts = [volume.split(":")[0] for _, service in services for volume in service.get("volumes", ())]
    found = [f"{path} is not there" for path in mounts if path.startswith(".") and not (INFRA / path).is_file()]
    used = {"volumes": {m for m in mounts if not m.startswith(".")}}
    used["networks"] = {network for _, service in services for network in service["networks"]}
    for kind, names in used.items():
        found += [f"{kind} {name} is not declared and used" for name in names ^ set(compose[kind])]
    for network, allowed in OPEN.items():
        inside = {name for name, service in services if network in service["networks"]}
        if not (compose["networks"][network] or {}).get("internal") or inside - allowed:
            found.append(f"network {network} is open to {sorted(inside - allowed) or 'the outside'}")
    return found


def ports_agree(compose: Document) -> list[str]:
    """A port is published on loopback, and is the one that the image serves on and that its health check asks."""
    found = []
    for name, service in compose["services"].items():
        for port in service.get("ports", ()):
            host, inner = port.split(":", 1)[0], port.rsplit(":", 1)[1]
            if host != "127.0.0.1":
                found.append(f"{name}: {port} is published to everybody")
            image = read(ROOT / service["build"]["dockerfile"])
            command = listed(last(image, "CMD"))
            asked = f"127.0.0.1:{inner}/" in str(service["healthcheck"]["test"])
            if last(image, "EXPOSE") != inner or inner not in command or not asked:
                found.append(f"{name}: port {inner} is not the image's")
    return found


def image_is_sound(path: Path) -> list[str]:
    """A Dockerfile starts from a pinned base, runs as a numbered user, and holds no secret."""
    steps = read(path)
    found = [] if re.search(r"^BASE=\S+:[\w.-]+" + DIGEST, steps[0].rest) else [f"base {steps[0].rest} is not pinned"]
    found += [f"FROM {step.rest}" for step in steps if step.word == "FROM" and not step.rest.startswith("${BASE}")]
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last(steps, "USER")):
        found.append(f"runs as {last(steps, 'USER') or 'root'}")
    found += [f"{step.word} is not for images" for step in steps if step.word in ("ADD", "VOLUME", "MAINTAINER")]
    found += [f"secret in {s.rest}" for s in steps if s.word in ("ENV", "ARG") and SECRET.search(s.rest)]
    return found


def sources_of(path: Path) -> set[str]:
    """Return what a Dockerfile copies from the checkout."""
    copied = [step.rest.split() for step in read(path) if step.word == "COPY" and not step.rest.startswith("--from")]
    return {source for words in copied for source in words[:-1]}


LAWS = [
    images_are_pinned,
    services_are_locked_up,
    services_wait_for_health,
    secrets_come_from_outside,
    names_are_declared,
    ports_agree,
]
BREAKERS: list[tuple[str, Callable[[Document], object]]] = [
    ("store: image", lambda c: c["store"].update(image="chrislusf/seaweedfs:latest")),
    ("mlflow: image", lambda c: c["mlflow"].update(image="${REGISTRY:-verdict}/mlflow:0.0.1")),
    ("worker is not locked up", lambda c: c["worker"].update(read_only=False)),
    ("worker is not locked up", lambda c: c["worker"].update(privileged=True)),
    ("postgres runs as root", lambda c: c["postgres"].pop("user")),
    ("mlflow has no limit of ['memory']", lambda c: c["mlflow"]["deploy"]["resources"]["limits"].pop("memory")),
    ("inference is not started again", lambda c: c["inference"].pop("restart")),
    ("prefect has no health check", lambda c: c["prefect"].pop("healthcheck")),
    ("worker waits wrongly", lambda c: c["worker"]["depends_on"]["prefect"].update(condition="service_started")),
    ("MLFLOW_AUTH_ADMIN_PASSWORD", lambda c: c["mlflow"]["environment"].update(MLFLOW_AUTH_ADMIN_PASSWORD="hunter22")),
    ("PREFECT_API_AUTH_STRING", lambda c: c["worker"]["environment"].update(PREFECT_API_AUTH_STRING="${X:-a:b}")),
    ("volumes cache", lambda c: c["worker"]["volumes"].append("cache:/cache")),
    ("./gone.sql is not there", lambda c: c["postgres"]["volumes"].append("./gone.sql:/gone.sql:ro")),
    ("network storage is open to ['inference']", lambda c: c["inference"]["networks"].append("storage")),
    ("published to everybody", lambda c: c["mlflow"].update(ports=["0.0.0.0:5000:5000"])),
    ("inference: port 8081", lambda c: c["inference"].update(ports=["127.0.0.1:8080:8081"])),
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_compose_file_keeps_every_law(law: Callable[[Document], list[str]]) -> None:
    assert law(read_compose()) == []


@pytest.mark.parametrize(("complaint", "spoil"), BREAKERS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_broken_compose_file_is_refused(complaint: str, spoil: Callable[[Document], object]) -> None:
    broken = copy.deepcopy(read_compose())
    spoil(broken["services"])
    assert any(complaint in found for law in LAWS for found in law(broken))


def schema_says(path: Path) -> subprocess.CompletedProcess[str]:
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_compose_file_fits_the_schema_of_the_specification(tmp_path: Path) -> None:
    assert schema_says(INFRA / "compose.yaml").returncode == 0
    broken = read_compose()
    broken["services"]["store"]["healthcheck"]["retires"] = 5
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(broken))
    assert "retires" in schema_says(tmp_path / "compose.yaml").stdout


def test_the_example_names_every_variable_that_must_be_set_and_gives_none_a_value() -> None:
    lines = (INFRA / "compose.env.example").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    assert {name for name, _, _ in pairs} == set(REQUIRED.findall(json.dumps(read_compose())))
    assert {value for _, _, value in pairs} == {""}
    kept = subprocess.run(["git", "check-ignore", "--quiet", "infra/.env"], cwd=ROOT)
    assert kept.returncode == 0


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_passes_hadolint_and_the_laws(path: Path) -> None:
    said = subprocess.run([BIN / "hadolint", path], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, "")
    assert image_is_sound(path) == []


@pytest.mark.parametrize(
    ("complaint", "old", "new"),
    [
        ("runs as root", "USER 10001:10001\n", ""),
        ("runs as root", "USER 10001:10001", "USER root"),
        ("is not pinned", "-slim-bookworm@sha256:", "-slim-bookworm#"),
        ("FROM python", "FROM ${BASE}\n", "FROM python:latest\n"),
        ("secret in", "ENV PATH", "ENV API_TOKEN=abc PATH"),
        ("ADD is not", "COPY README.md", "ADD README.md"),
    ],
)
def test_a_broken_dockerfile_is_refused(tmp_path: Path, complaint: str, old: str, new: str) -> None:
    text = (IMAGES / "inference.Dockerfile").read_text(encoding="utf-8")
    assert old in text
    broken = tmp_path / "Dockerfile"
    broken.write_text(text.replace(old, new))
    assert any(complaint in found for found in image_is_sound(broken))


def test_hadolint_refuses_what_it_should(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nRUN cd /tmp && apt-get install git\n")
    said = subprocess.run([BIN / "hadolint", tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert said.returncode == 1
    assert "DL3007" in said.stdout


def test_images_are_built_from_what_they_copy_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert allowed == set().union(*map(sources_of, DOCKERFILES))
    assert [name for name in allowed if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", ["worker", "inference"])
def test_an_image_with_the_project_gets_all_that_its_wheel_is_made_of(name: str) -> None:
    build = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    parts = {*build["packages"], *build.get("force-include", ()), PROJECT["project"]["readme"]}
    parts |= set(PROJECT["project"]["license-files"])
    assert parts - sources_of(IMAGES / f"{name}.Dockerfile") == set()


def test_every_built_image_has_a_service_and_the_folder_no_stray_dockerfile() -> None:
    built = {ROOT / s["build"]["dockerfile"] for s in read_compose()["services"].values() if "build" in s}
    assert built == set(DOCKERFILES)


@pytest.mark.parametrize("path", sorted(INFRA.rglob("*.sh")), ids=lambda path: path.name)
def test_a_script_passes_shellcheck(path: Path) -> None:
    said = subprocess.run([BIN / "shellcheck", path], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, "")


def test_an_image_asks_for_nothing_that_the_project_does_not() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [item for name in ("cpu", "serve", "schedule", "train", "tracing") for item in extras[name]]
    known = {*PROJECT["project"]["dependencies"], *wanted}
    # What only a server needs.
    other = ("mlflow[auth]", "psycopg2-binary", "boto3")
    groups = {name: group for name, group in PROJECT["dependency-groups"].items() if name != "tools"}
    for group in groups.values():
        assert [item for item in group if item not in known and not item.startswith(other)] == []
    ranges = {re.split(r"[\[>]", item)[0]: item[item.index(">") :].split(";")[0] for item in known if ">" in item}
    runtime = tomllib.loads((INFRA / "inference" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert runtime["dependencies"] == [f"{name}{ranges[name]}" for name in ("onnxruntime", "tokenizers", "numpy")]
    assert runtime["optional-dependencies"] == {
        "mlflow": [f"mlflow-skinny{ranges['mlflow']}"],
        "signatures": [f"cryptography{ranges['cryptography']}"],
    }
    assert f"mlflow[auth]{ranges['mlflow']}" in PROJECT["dependency-groups"]["mlflow"]


@pytest.mark.parametrize("model", ["acceptability", "grammar"])
def test_the_accounts_script_creates_every_experiment_that_the_product_writes_to(model: str) -> None:
    """Whoever creates an experiment owns it: one that is missing there could be taken by the account that reads."""
    script = (
        "import accounts; from tasks.registry.mlflow_client import EXPERIMENT_TAGS; "
        "from tasks.inference.bundle import MODEL_NAME; "
        "print(sorted(accounts.EXPERIMENTS) == sorted(EXPERIMENT_TAGS), accounts.MODEL == MODEL_NAME)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, IMAGES))), "VERDICT_MODEL_NAME": model}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"


def variables_read() -> set[str]:
    """Return the environment variables that flows/ and tasks/ read by name."""
    names = set()
    for path in [*ROOT.glob("flows/**/*.py"), *ROOT.glob("tasks/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            written = isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load)
            text = ast.unparse(node) if isinstance(node, ast.Call | ast.Subscript) and not written else ""
            if found := re.match(r"os\.(?:environ\.get\(|environ\[|getenv\()'([A-Z][A-Z_]+)'", text):
                names.add(found[1])
    return names - OWN


def test_every_variable_that_is_read_is_documented() -> None:
    documents = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "infra/README.md"))
    documented = set(re.findall(r"\b[A-Z][A-Z0-9_]{2,}\b", documents))
    compose = set(VARIABLE.findall((INFRA / "compose.yaml").read_text(encoding="utf-8")))
    assert sorted((variables_read() | compose) - documented) == []


def test_each_prefect_server_deletes_old_runs_and_knows_the_setting() -> None:
    from prefect.settings.models.server.services import ServerServicesDBVacuumSettings

    from flows.services.embedded_prefect import SERVER_SETTINGS

    name = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]["prefect"]["environment"][name]
    kubernetes = (INFRA / "kubernetes" / "base" / "prefect.yaml").read_text()
    assert f'{{name: {name}, value: "{compose}"}}' in kubernetes
    assert SERVER_SETTINGS[name] == compose
    assert ServerServicesDBVacuumSettings(enabled=compose).enabled_vacuum_types == {"events", "flow_runs", "orphans"}
