"""The Kubernetes manifests: schemas, kustomize's own rendering, and laws; each law refuses a broken copy."""

import asyncio
import copy
import functools
import json
import re
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from kubernetes_laws import LAWS
from manifests import (
    INFRA,
    ROOT,
    SECRETS,
    SIGNATURES,
    Document,
    containers_of,
    deployment_of,
    job_of,
    jobs_of,
    name_of,
    read_yaml,
    render,
)
from manifests import without_hashes as plain

from flows.cli.app import app
from tasks.core.signing import KEY_VARIABLE, REQUIRE_VARIABLE, TRUSTED_VARIABLE
from tasks.serving.batch_scoring import check_paths

OVERLAYS = [INFRA / "kubernetes" / name for name in ("base", "gpu", "kserve", "ray", "hosts")]
SUBMITTED = {"ray": ("sweep.yaml", "score.yaml"), "hosts": ("train.yaml",)}  # beside what an overlay applies
TEMPLATES = [folder / "job-template.json" for folder in OVERLAYS[:2]]
VERSIONS = ("1.30", "1.37")  # the oldest that knows preStop's sleep, the newest whose schema is at hand
GENERATED = {"addresses", "job-template"}
STRAY = ("parallelism", "completions")  # prefect-kubernetes wants them in the pod too, where nothing reads them


@functools.cache
def rendered(folder: Path) -> list[Document]:
    """Return a kustomization's documents, and what is made of them: a change needs a copy.

    The work pool makes a job of its template, KServe a Deployment of an InferenceService, KubeRay pods.
    """
    job = job_of(TEMPLATES[folder.name == "gpu"])
    for field in STRAY:
        del job["spec"]["template"]["spec"][field]
    job["metadata"].update(name="run", labels={}, annotations={})
    job["spec"]["template"]["spec"]["containers"][0].update(args=["prefect", "flow-run", "execute"])
    documents = render(folder)
    for name in SUBMITTED.get(folder.name, ()):
        documents += read_yaml(folder / name)
    return [*(made for document in documents for made in made_of(document)), job]


def containers_of_all(documents: list[Document], *names: str) -> list[Document]:
    found = {name_of(document)[1]: document for document in documents if name_of(document)[1] in names}
    assert found.keys() == set(names)
    return [container for document in found.values() for container in containers_of(document)]


def made_of(document: Document) -> list[Document]:
    """Return what a controller makes of a document of its own kind; another document as it is."""
    if document["kind"] == "InferenceService":
        return [deployment_of(document)]
    return jobs_of(document) if document["kind"].startswith("Ray") else [document]


def spoil_container(name: str, **changes: Any) -> Callable[[dict[tuple[str, str], Document]], None]:
    kind = "Job" if name in ("run", "mlflow-accounts") else "Deployment"
    return lambda there: containers_of(there[kind, name])[0].update(changes)


def spoil(kind: str, name: str, path: str, value: Any) -> Callable[[dict[tuple[str, str], Document]], None]:
    """Return what sets a value deep in a document."""

    def change(there: dict[tuple[str, str], Document]) -> None:
        place: Any = there[kind, name]
        *way, key = [int(word) if word.isdecimal() else word for word in path.split(".")]
        for word in way:
            place = place[word]
        place[key] = value

    return change


POD = "spec.template.spec"
BREAKERS = [
    ("mlflow runs as root", spoil("Deployment", "mlflow", f"{POD}.securityContext.runAsUser", 0)),
    ("run runs as root or unconfined", spoil("Job", "run", f"{POD}.securityContext.seccompProfile", None)),
    ("inference: container inference is not locked up", spoil_container("inference", securityContext={})),
    ("run goes by an account", spoil("Job", "run", f"{POD}.serviceAccountName", "default")),
    ("run may ask the cluster", spoil("Job", "run", f"{POD}.automountServiceAccountToken", True)),
    ("run: container prefect-job has no requests", spoil_container("run", resources={"limits": {"cpu": "1"}})),
    ("may fill the node", spoil("Deployment", "mlflow", f"{POD}.volumes.0.emptyDir", {})),
    ("verdict/worker:latest is not this", spoil_container("worker", image="verdict/worker:latest")),
    ("prefect has no readinessProbe", spoil_container("prefect", readinessProbe={})),
    (
        "inference is not configured to listen",
        spoil("Deployment", "inference", f"{POD}.containers.0.ports.0.containerPort", 9),
    ),
    ("service mlflow sends 5001 nowhere", spoil("Service", "mlflow", "spec.ports.0.port", 5001)),
    ("policy inference lets [80]", spoil("NetworkPolicy", "inference", "spec.ingress.0.ports.0.port", 80)),
    ("volume tmp is not declared", spoil_container("worker", volumeMounts=[])),
    ("claim verdict is not there", spoil("PersistentVolumeClaim", "verdict", "metadata.name", "other")),
    ("reads STORE_BUCKET", spoil("ConfigMap", "addresses", "data", {})),
    ("no Deployment that leaves", spoil("Deployment", "inference", "spec.replicas", 3)),
    (
        "budget inference is nobody's",
        spoil("PodDisruptionBudget", "inference", "spec.selector.matchLabels", {"a": "b"}),
    ),
    ("secret addresses is committed", spoil("ConfigMap", "addresses", "kind", "Secret")),
    ("PGPASSWORD does not come", spoil_container("mlflow", env=[{"name": "PGPASSWORD", "value": "hunter22"}])),
    (
        "VERDICT_SIGNING_KEY does not come",
        spoil_container("mlflow", env=[{"name": "VERDICT_SIGNING_KEY", "value": "a"}]),
    ),
    ("nothing is closed", spoil("NetworkPolicy", "default-deny", "spec.policyTypes", ["Ingress"])),
    (
        "label verdict/asks-mlflow disagree",
        spoil("Deployment", "inference", "spec.template.metadata.labels", {"a": "b"}),
    ),
    ("a role holds", spoil("Role", "worker", "rules.0.verbs", ["*"])),
    ("reaches beyond", spoil("Role", "worker", "kind", "ClusterRole")),
]


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_manifests_keep_every_law(law: Callable[[list[Document]], list[str]], folder: Path) -> None:
    assert law(rendered(folder)) == []


@pytest.mark.parametrize(("complaint", "change"), BREAKERS, ids=lambda value: value if isinstance(value, str) else "")
def test_broken_manifests_are_refused(complaint: str, change: Callable[[Any], None]) -> None:
    documents = copy.deepcopy(rendered(OVERLAYS[0]))
    change({name_of(document): document for document in documents})
    assert any(complaint in found for law in LAWS for found in law(documents))


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_fits_the_schema_of_its_kind(folder: Path, version: str) -> None:
    base = rendered(OVERLAYS[0])
    documents = base if folder is OVERLAYS[0] else [d for d in rendered(folder) if d not in base]
    assert len(documents) == {"base": 29, "gpu": 4, "kserve": 2, "ray": 8, "hosts": 4}[folder.name]
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(("folder", "kind"), [(OVERLAYS[0], "Service"), (OVERLAYS[2], "InferenceService")])
def test_a_field_that_no_schema_knows_is_refused(folder: Path, kind: str) -> None:
    document = copy.deepcopy(next(d for d in render(folder) if d["kind"] == kind))
    document["spec"].get("predictor", document["spec"])["potrs"] = []
    made = deployment_of(document) if kind == "InferenceService" else document
    with pytest.raises(kubernetes_validate.ValidationError, match="potrs"):
        kubernetes_validate.validate(made, VERSIONS[0], strict=True)


def test_kserve_serves_with_the_base_s_container_and_leaves_the_number_of_pods_to_the_queue() -> None:
    base, kserve = ({name_of(d): d for d in rendered(folder)} for folder in (OVERLAYS[0], OVERLAYS[2]))
    ours, theirs = copy.deepcopy((base["Deployment", "inference"], kserve["Deployment", "inference-predictor"]))
    for document in (ours, theirs):
        container = containers_of(document)[0]
        container["args"] = [word for word in container["args"] if not word.startswith("inference")]
        document.pop("metadata")
    del containers_of(ours)[0]["name"], containers_of(theirs)[0]["name"]  # KServe prescribes it
    del containers_of(theirs)[0]["ports"][0]["protocol"], theirs["spec"]["template"]["metadata"]["annotations"]
    assert theirs == ours
    (metric,) = kserve["HorizontalPodAutoscaler", "inference"]["spec"]["metrics"]
    assert metric["pods"]["metric"] == {"name": "verdict_queue_sentences"}


def test_the_ray_cluster_wants_a_token_reports_nothing_and_is_what_commands_connect_to() -> None:
    documents = rendered(OVERLAYS[3])
    [cluster] = [document for document in render(OVERLAYS[3]) if document["kind"] == "RayCluster"]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"ray=={cluster['spec']['rayVersion']}\n" in pins
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    for container in containers_of_all(documents, "ray-head", "ray-worker", "sweep", "score"):
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
    for name in SUBMITTED["ray"]:
        [job] = read_yaml(OVERLAYS[3] / name)
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
        assert job["spec"]["entrypoint"].startswith(f"verdict {Path(name).stem} ")
        assert "--ray auto" in job["spec"]["entrypoint"]


def submitted_words() -> list[list[str]]:
    jobs = [read_yaml(OVERLAYS[3] / name)[0] for name in SUBMITTED["ray"]]
    arguments = containers_of(read_yaml(OVERLAYS[4] / "train.yaml")[0])[0]["args"]
    return [*(shlex.split(job["spec"]["entrypoint"]) for job in jobs), arguments[arguments.index("verdict") :]]


@pytest.mark.parametrize("words", submitted_words(), ids=lambda words: words[1])
def test_a_command_that_is_submitted_is_one_that_verdict_takes(words: list[str], tmp_path: Path) -> None:
    group: Any = typer.main.get_command(app)
    options = group.commands[words[1]].make_context(words[1], words[2:]).params  # raises UsageError
    assert options
    if words[1] == "score":
        (tmp_path / "in.txt").write_text("The child has eaten.\n")
        check_paths(str(tmp_path / "in.txt"), str(tmp_path / Path(options["out"]).name))


def test_a_training_over_hosts_starts_as_many_ranks_as_it_has_pods() -> None:
    [train] = read_yaml(OVERLAYS[4] / "train.yaml")
    [container] = containers_of(train)
    words, ranks = container["args"], str(train["spec"]["completions"])
    assert str(train["spec"]["parallelism"]) == words[words.index("--nnodes") + 1] == ranks
    assert f"finetune.processes={ranks}" in words
    service = next(d for d in render(OVERLAYS[4]) if name_of(d) == ("Service", "train"))
    endpoint = f"{train['metadata']['name']}-0.{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert words[words.index("--rdzv-endpoint") + 1] == endpoint
    assert train["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which carries kustomize, is not installed")
@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_kustomize_renders_what_these_tests_read(folder: Path) -> None:
    said = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    theirs = [plain(document, GENERATED) for document in yaml.safe_load_all(said.stdout)]
    assert {name_of(d): d for d in theirs} == {name_of(d): d for d in render(folder)}


def test_the_gpu_overlay_adds_gpus_to_the_job_and_changes_nothing_else() -> None:
    base, gpu = (json.loads(path.read_text(encoding="utf-8")) for path in TEMPLATES)
    assert gpu["variables"]["properties"].pop("gpus")["default"] == 1
    pod = gpu["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert [resources[kind].pop("nvidia.com/gpu") for kind in ("requests", "limits")] == ["{{ gpus }}"] * 2
    assert pod.pop("tolerations") == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod.pop("nodeSelector") == {"nvidia.com/gpu.present": "true"}
    assert gpu == base


async def make_job(name: str, template: Document, chosen: Document) -> Document:
    """Give Prefect's server a work pool with a template, and return the job that its worker makes of it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.objects import FlowRun
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=name, type="kubernetes", base_job_template=template))
    configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(template, chosen)
    configuration.prepare_for_flow_run(FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="brave-bee"))
    return dict(configuration.job_manifest)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.parent.name)
def test_prefect_makes_a_job_of_the_template(path: Path, prefect_server: str) -> None:
    template = json.loads(path.read_text(encoding="utf-8"))
    chosen = {"cpu_limit": "16", "env": {"VERDICT_FINETUNE__EPOCHS": "3"}}
    job = asyncio.run(make_job(f"verdict-{path.parent.name}", template, chosen))
    pod, labels = job["spec"]["template"]["spec"], job["spec"]["template"]["metadata"]["labels"]
    for field in STRAY:
        del pod[field]
    kubernetes_validate.validate(job, VERSIONS[0], strict=True)
    container, env = pod["containers"][0], {entry["name"]: entry for entry in pod["containers"][0]["env"]}
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["resources"]["limits"]["cpu"] == "16"
    assert container["resources"]["limits"].get("nvidia.com/gpu") == (1 if path.parent.name == "gpu" else None)
    assert env["VERDICT_FINETUNE__EPOCHS"]["value"] == "3"
    assert "value" not in env["MLFLOW_TRACKING_PASSWORD"]
    # A pod that the cluster takes away is not a failed run.
    assert env["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"]["value"] == "reschedule"
    assert labels["verdict/asks-mlflow"] == labels["verdict/asks-prefect"] == "yes"
    assert job["metadata"]["namespace"] == "verdict"


def test_a_template_with_an_unknown_placeholder_is_refused(prefect_server: str) -> None:
    text = TEMPLATES[0].read_text(encoding="utf-8").replace("{{ image }}", "{{ picture }}")
    with pytest.raises(Exception, match="picture"):
        asyncio.run(make_job("verdict-broken", json.loads(text), {}))


def test_the_secret_that_the_manual_makes_has_every_key_that_is_read() -> None:
    pods = json.dumps([containers_of(document) for folder in OVERLAYS for document in rendered(folder)])
    keys = set(re.findall(rf'"name": "{SECRETS}", "key": "(\w+)"', pods))
    manual = (INFRA / "README.md").read_text(encoding="utf-8")
    command = manual[manual.index(f"create secret generic {SECRETS}") :].split("\n```")[0]
    assert set(re.findall(r"--from-literal=(\w+)=", command)) == keys


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_signatures_are_switched_on_by_a_secret_that_may_be_missing(folder: Path) -> None:
    read: dict[str, set[str]] = {}
    for document in rendered(folder):
        for entry in (entry for container in containers_of(document) for entry in container.get("env", ())):
            chosen = entry.get("valueFrom", {}).get("secretKeyRef", {})
            if chosen.get("name") == SIGNATURES:
                assert chosen == {"name": SIGNATURES, "key": entry["name"], "optional": True}
                read.setdefault(name_of(document)[1], set()).add(entry["name"])
    checked = {TRUSTED_VARIABLE, REQUIRE_VARIABLE}
    signing = {"run", "ray-head", "train"} & read.keys()
    assert [read.pop(name) for name in signing] == [checked | {KEY_VARIABLE}] * len(signing)
    assert "run" in signing
    assert list(read.values()) == [checked]  # the service
    manual = (INFRA / "README.md").read_text(encoding="utf-8")
    command = manual[manual.index(f"create secret generic {SIGNATURES}") :].split("\n```")[0]
    assert set(re.findall(r"--from-\w+=(\w+)=", command)) == checked | {KEY_VARIABLE}
