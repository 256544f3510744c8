"""What holds for every Kubernetes manifest of ours: each law takes the documents and returns what breaks it."""

import json
import re

from manifests import SECRETS, SIGNATURES, VERSION, Document, containers_of, labels_of, name_of, pod_of

SECRET = re.compile(r"(PASSWORD|AUTH_STRING|ACCESS_KEY|SECRET_KEY|SIGNING_KEY|TOKEN)")
REFERENCE = re.compile(r"_SECRET_(NAME|KEY)$")  # says where a secret is


def makers(documents: list[Document], *kinds: str) -> dict[str, Document]:
    """Return the documents that make pods, by name."""
    return {d["metadata"]["name"]: d for d in documents if d["kind"] in (kinds or ("Deployment", "Job"))}


def pods_are_locked_up(documents: list[Document]) -> list[str]:
    """A pod runs as a numbered user, confined, on a read-only image, without rights to ask the cluster."""
    found, accounts = [], {name for kind, name in map(name_of, documents) if kind == "ServiceAccount"}
    for name, document in makers(documents).items():
        pod = pod_of(document) or {}
        context = pod.get("securityContext", {})
        confined = context.get("seccompProfile") == {"type": "RuntimeDefault"}
        if not (context.get("runAsNonRoot") and context.get("runAsUser", 0) > 0 and confined):
            found.append(f"{name} runs as root or unconfined")
        for container in containers_of(document):
            if container.get("securityContext") != {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }:
                found.append(f"{name}: container {container['name']} is not locked up")
        if pod.get("serviceAccountName") not in accounts:
            found.append(f"{name} goes by an account that is not there")
        if pod.get("automountServiceAccountToken") is not (name == "worker"):
            found.append(f"{name} may ask the cluster")
    return found


def pods_say_what_they_take(documents: list[Document]) -> list[str]:
    """A container has requests and limits; a GPU is asked for as it is limited; temporary folders have a size."""
    found = []
    for name, document in makers(documents).items():
        for container in containers_of(document):
            asked, limits = (container.get("resources", {}).get(kind, {}) for kind in ("requests", "limits"))
            if not {"cpu", "memory"} <= set(asked) & set(limits) or asked.get("nvidia.com/gpu") != limits.get(
                "nvidia.com/gpu"
            ):
                found.append(f"{name}: container {container['name']} has no requests or limits")
        for volume in (pod_of(document) or {}).get("volumes", ()):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                found.append(f"{name}: volume {volume['name']} may fill the node")
    return found


def images_are_pinned(documents: list[Document]) -> list[str]:
    return [
        f"{name}: image {container['image']} is not this version"
        for name, document in makers(documents).items()
        for container in containers_of(document)
        if not re.fullmatch(rf"verdict/\w+:{re.escape(VERSION)}", container["image"])
    ]


def servers_are_probed(documents: list[Document]) -> list[str]:
    """A server is watched as it starts, while it serves and while it lives, on a port that it has."""
    found = []
    for name, document in makers(documents, "Deployment").items():
        for container in containers_of(document):
            ports = {port["name"] for port in container.get("ports", ())}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if container.get(probe, {}).get("httpGet", {}).get("port") not in ports:
                    found.append(f"{name} has no {probe} on one of its ports")
    return found


def ports_agree(documents: list[Document]) -> list[str]:
    """What a service sends on, a policy lets through and a command listens on is one port."""
    found, pods = [], makers(documents)
    for name, document in makers(documents, "Deployment").items():
        for container in containers_of(document):
            ports = {str(port["containerPort"]) for port in container["ports"]}
            given = {*container["args"], *(str(entry.get("value")) for entry in container["env"])}
            if not ports <= given:
                found.append(f"{name} is not configured to listen on {sorted(ports - given)}")
    for document in documents:
        if document["kind"] == "Service":
            numbers = _ports_of(_selected(pods, document["spec"]["selector"]))
            for port in document["spec"]["ports"]:
                if numbers.get(port["targetPort"]) != port["port"]:
                    found.append(f"service {document['metadata']['name']} sends {port['port']} nowhere")
        if document["kind"] == "NetworkPolicy" and document["spec"].get("ingress"):
            targets = _selected(pods, document["spec"]["podSelector"]["matchLabels"])
            numbers = _ports_of(targets)
            let = {port["port"] for rule in document["spec"]["ingress"] for port in rule.get("ports", ())}
            if not targets or not let <= set(numbers.values()):  # a rule without ports opens all of them
                found.append(f"policy {document['metadata']['name']} lets {sorted(let)} through to {numbers}")
    return found


def names_lead_somewhere(documents: list[Document]) -> list[str]:
    """Volumes, claims, ConfigMaps, accounts, autoscalers and budgets name what is there; no Secret is committed."""
    found, there = [], {name_of(document): document for document in documents}
    for name, document in makers(documents).items():
        volumes = {volume["name"]: volume for volume in (pod_of(document) or {}).get("volumes", ())}
        mounted = {mount["name"] for container in containers_of(document) for mount in container["volumeMounts"]}
        found += [f"{name}: volume {volume} is not declared and mounted" for volume in set(volumes) ^ mounted]
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and ("PersistentVolumeClaim", claim) not in there:
                found.append(f"{name}: claim {claim} is not there")
        for entry in (entry for container in containers_of(document) for entry in container["env"]):
            chosen = entry.get("valueFrom", {}).get("configMapKeyRef")
            if chosen and chosen["key"] not in there.get(("ConfigMap", chosen["name"]), {}).get("data", {}):
                found.append(f"{name}: {entry['name']} reads {chosen['key']}, which no ConfigMap has")
    for (kind, name), document in there.items():
        if kind == "Secret":
            found.append(f"secret {name} is committed")
        if kind == "HorizontalPodAutoscaler":
            target = there.get(("Deployment", document["spec"]["scaleTargetRef"]["name"]))
            if target is None or "replicas" in target["spec"]:
                found.append(f"autoscaler {name} has no Deployment that leaves the count to it")
        if kind == "PodDisruptionBudget" and not _selected(
            makers(documents), document["spec"]["selector"]["matchLabels"]
        ):
            found.append(f"budget {name} is nobody's")
    return found


def secrets_are_named_only(documents: list[Document]) -> list[str]:
    """A secret is read from the one Secret that somebody else makes."""
    found = []
    for name, document in makers(documents).items():
        for entry in (entry for container in containers_of(document) for entry in container["env"]):
            chosen = entry.get("valueFrom", {}).get("secretKeyRef", {})
            if (
                SECRET.search(entry["name"])
                and not REFERENCE.search(entry["name"])
                and chosen.get("name") not in (SECRETS, SIGNATURES)
            ):
                found.append(f"{name}: {entry['name']} does not come from {SECRETS}")
    return found


def traffic_is_let_through_by_name(documents: list[Document]) -> list[str]:
    """Everything is closed by default, and whoever is given an address may go there."""
    policies = {name: d["spec"] for d in documents for kind, name in [name_of(d)] if kind == "NetworkPolicy"}
    closed = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    found = [] if policies.get("default-deny") == closed else ["nothing is closed by default"]
    for name, document in makers(documents).items():
        labels, given = labels_of(document), json.dumps(containers_of(document))
        for server in ("prefect", "mlflow"):
            if (f"http://{server}:" in given) != (labels.get(f"verdict/asks-{server}") == "yes"):
                found.append(f"{name} and its label verdict/asks-{server} disagree")
    return found


def rights_are_few(documents: list[Document]) -> list[str]:
    """Rights are listed one by one, reach no secret, and hold in this namespace."""
    found = [
        f"{kind} {name} reaches beyond" for kind, name in map(name_of, documents) if kind.startswith("ClusterRole")
    ]
    for rule in (rule for document in documents if document["kind"] == "Role" for rule in document["rules"]):
        words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
        if words & {"*", "secrets", "pods/exec", "escalate", "bind", "impersonate"}:
            found.append(f"a role holds {sorted(words)}")
    return found


def _ports_of(documents: list[Document]) -> dict[str, int]:
    ports = [port for document in documents for c in containers_of(document) for port in c.get("ports", ())]
    return {port["name"]: port["containerPort"] for port in ports}


def _selected(documents: dict[str, Document], selector: dict[str, str]) -> list[Document]:
    return [document for document in documents.values() if selector.items() <= labels_of(document).items()]


LAWS = [
    pods_are_locked_up,
    pods_say_what_they_take,
    images_are_pinned,
    servers_are_probed,
    ports_agree,
    names_lead_somewhere,
    secrets_are_named_only,
    traffic_is_let_through_by_name,
    rights_are_few,
]
