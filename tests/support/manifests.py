"""Reads what infra/ holds: the compose file, Dockerfiles, and Kubernetes manifests as kustomize would render them."""

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
IMAGES = INFRA / "images"
DOCKERFILES = sorted(IMAGES.glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERSION: str = PROJECT["project"]["version"]
SECRETS = "verdict-secrets"  # the Secret that manifests name and nobody commits
SIGNATURES = "verdict-signatures"  # another, which may be missing

Document = dict[str, Any]


class Instruction(NamedTuple):
    """One instruction of a Dockerfile, and what follows it."""

    word: str
    rest: str


def read_yaml(path: Path) -> list[Any]:
    """Return a file's documents, read by libyaml, which is ten times as fast as PyYAML's own reader."""
    return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))


def read_compose() -> Document:
    return dict(read_yaml(INFRA / "compose.yaml")[0])


def read_dockerfile(path: Path) -> list[Instruction]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def last(instructions: list[Instruction], word: str) -> str:
    """Return what follows the last instruction of a kind; JSON lists stay text."""
    return next((found.rest for found in reversed(instructions) if found.word == word), "")


def listed(text: str) -> list[str]:
    """Return an instruction's JSON list."""
    return list(json.loads(text))


def render(folder: Path) -> list[Document]:
    """Return what a kustomization makes, for the few fields that ours use; generated names stay without their hash."""
    (plan,) = read_yaml(folder / "kustomization.yaml")
    known = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "patches", "images"}
    assert set(plan) <= known, f"{folder.name}: this reader does not know {sorted(set(plan) - known)}"
    documents: list[Document] = []
    for name in plan["resources"]:
        path = folder / name
        documents += render(path) if path.is_dir() else read_yaml(path)
    for entry in plan.get("configMapGenerator", ()):
        documents = [*(d for d in documents if name_of(d) != ("ConfigMap", entry["name"])), _config_map(folder, entry)]
    for patch in plan.get("patches", ()):
        target = (patch["target"]["kind"], patch["target"]["name"])
        (changes,) = read_yaml(folder / patch["path"])
        assert target in map(name_of, documents), f"{patch['path']} changes {target}, which is not there"
        removed = changes.pop("$patch", "") == "delete"
        documents = [
            merge(d, changes) if name_of(d) == target else d for d in documents if not removed or name_of(d) != target
        ]
    for document in documents:
        _place(document, plan["namespace"])
        for container in containers_of(document):
            tags = {image["name"]: image["newTag"] for image in plan.get("images", ())}
            if container["image"] in tags:
                container["image"] += f":{tags[container['image']]}"
    return documents


def name_of(document: Document) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def pod_of(document: Document) -> Document | None:
    """Return the pod that a document makes; None where it makes none."""
    if document["kind"] == "InferenceService":
        return dict(document["spec"]["predictor"])
    template = document.get("spec", {}).get("template") if document["kind"] in ("Deployment", "Job") else None
    return template["spec"] if template else None


def containers_of(document: Document) -> list[Document]:
    pod = pod_of(document)
    return list(pod["containers"]) if pod else []


def labels_of(document: Document) -> dict[str, str]:
    """Return the labels of the pods that a document makes."""
    return dict(document["spec"]["template"]["metadata"]["labels"])


def merge(old: Any, new: Any) -> Any:
    """Merge as kustomize does: mappings by key, lists of named things by name, anything else by replacing it."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: merge(old[key], new[key]) if key in old and key in new else {**old, **new}[key]
                for key in {**old, **new}}  # fmt: skip
    named = isinstance(old, list) and isinstance(new, list) and all("name" in item for item in [*old, *new])
    if named and all(isinstance(item, dict) for item in [*old, *new]):
        by_name = {item["name"]: item for item in old}
        return list((by_name | {item["name"]: merge(by_name.get(item["name"]), item) for item in new}).values())
    return copy.deepcopy(new)


def without_hashes(document: Document, generated: set[str]) -> Document:
    """Return a document with the names of generated ConfigMaps as they are written."""
    names = "|".join(map(re.escape, sorted(generated)))
    return dict(json.loads(re.sub(rf'"({names})-[0-9a-z]{{10}}"', r'"\1"', json.dumps(document))))


def job_of(path: Path) -> Document:
    """Return the job that a work pool's template makes, each placeholder replaced by its variable's default."""
    template = json.loads(path.read_text(encoding="utf-8"))
    properties = template["variables"]["properties"]

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item) for item in value]
        name = re.fullmatch(r"\{\{ (\w+) \}\}", value) if isinstance(value, str) else None
        return properties[name[1]]["default"] if name else value

    return dict(fill(template["job_configuration"]["job_manifest"]))


def deployment_of(service: Document) -> Document:
    """Return the Deployment that KServe (mode Standard) makes of an InferenceService with a container of ours."""
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    pod = copy.deepcopy(service["spec"]["predictor"])
    assert [container["name"] for container in pod["containers"]] == ["kserve-container"]
    metadata = {field: pod.pop(field) for field in ("labels", "annotations")}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**service["metadata"], "name": f"{service['metadata']['name']}-predictor"},
        "spec": {
            "strategy": pod.pop("deploymentStrategy"),
            "selector": {"matchLabels": {"app.kubernetes.io/name": service["metadata"]["name"]}},
            "template": {"metadata": metadata, "spec": pod},
        },
    }


def jobs_of(document: Document) -> list[Document]:
    """Return a job for each kind of pod that KubeRay makes of a RayCluster, or of a RayJob for a cluster that is there.

    What it adds to a pod (command, probes, token) is left out; a job's pod, unlike a node's, says that it ends.
    """
    assert document["apiVersion"] == "ray.io/v1"
    spec, namespace = document["spec"], document["metadata"]["namespace"]
    if document["kind"] == "RayJob":
        assert set(spec) <= {"clusterSelector", "entrypoint", "submitterConfig", "submitterPodTemplate"}
        return [_job(document["metadata"]["generateName"].rstrip("-"), namespace, {}, spec["submitterPodTemplate"])]
    assert set(spec) <= {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    head, [workers] = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert set(head) <= {"rayStartParams", "template"}
    assert set(workers) <= {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    name = document["metadata"]["name"]
    return [
        _job(f"{name}-{role}", namespace, {"ray.io/cluster": name, "ray.io/node-type": role}, group["template"])
        for role, group in (("head", head), ("worker", workers))
    ]


def _job(name: str, namespace: str, labels: dict[str, str], template: Document) -> Document:
    pod = {"restartPolicy": "Never", **template["spec"]}
    spec = {"template": {"metadata": {"labels": template["metadata"]["labels"] | labels}, "spec": pod}}
    metadata = {"name": name, "namespace": namespace}
    return copy.deepcopy({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})


def _config_map(folder: Path, entry: Document) -> Document:
    data = dict(literal.split("=", 1) for literal in entry.get("literals", ()))
    data |= {Path(name).name: (folder / name).read_text(encoding="utf-8") for name in entry.get("files", ())}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": entry["name"]}, "data": data}


def _place(document: Document, namespace: str) -> None:
    if document["kind"] != "Namespace":
        document["metadata"]["namespace"] = namespace
    for subject in document.get("subjects", ()):
        subject["namespace"] = namespace
