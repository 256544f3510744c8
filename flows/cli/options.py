"""Options that several commands have, each written once, and how a result is printed."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.cli.completion import complete_assignment, complete_profile
from tasks.core.printable import json_document, redact

if TYPE_CHECKING:
    from tasks.core.settings_loader import ResolvedSettings
    from tasks.serving.challenger import ChallengerConfig
    from tasks.serving.ray_serve import ReplicaConfig
    from tasks.serving.request_log import RequestLogConfig

Device = Literal["auto", "cuda", "cpu"]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Also print details of export, drift and training.")]
OnDevice = Annotated[Device, typer.Option(help="Where to compute; auto uses a GPU if one works.")]
TrainingDevice = Annotated[
    Device | None, typer.Option(help="Where to train; cuda fails without a GPU, auto falls back to the CPU.")
]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        callback=redact,
        help="Registry address, version number, a bundle's folder, or hf:ORG/NAME[@REVISION].",
    ),
]
RayAddress = Annotated[
    str,
    typer.Option(
        "--ray", metavar="ADDRESS", help="Work on a Ray cluster: HOST:PORT, auto, or local for one on this machine."
    ),
]
VersionNumber = Annotated[str, typer.Argument(metavar="VERSION", help="Version number, see `verdict status`.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", callback=redact, help="Reason; recorded in the history.")]


@dataclasses.dataclass(frozen=True)
class BatchingOptions:
    """How `verdict serve` queues requests and puts them together; fields are named as those of its configuration."""

    max_batch: Annotated[int, typer.Option(min=1, max=4_096, help="Most sentences in one batch.")] = 64
    max_wait_ms: Annotated[
        float, typer.Option(min=0, max=1_000, help="Milliseconds a request may wait to be batched with others.")
    ] = 2.0
    queue: Annotated[int, typer.Option(min=1, help="Most tokens that wait; more are refused with 429.")] = 131_072
    max_requests: Annotated[int, typer.Option(min=1, help="Most requests that wait; more are refused with 429.")] = 128
    max_batch_tokens: Annotated[
        int,
        typer.Option(min=0, help="Most sentences of a batch times the tokens of its longest; 0 for any number."),
    ] = 0


@dataclasses.dataclass(frozen=True)
class AccessOptions:
    """Who may use `verdict serve`, and how much; fields are named as those of its configuration."""

    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            help="Host name that requests may be for, besides localhost and --host; or *.DOMAIN, *; repeatable.",
        ),
    ] = None
    api_keys: Annotated[
        str, typer.Option(metavar="FILE", help="Answer requests with a key of this file only, see: verdict api-key.")
    ] = ""
    client_rate: Annotated[
        float, typer.Option(min=0, help="Most sentences per second of each key, or address without keys; 0: any.")
    ] = 0.0


@dataclasses.dataclass(frozen=True)
class RequestLogOptions:
    """What `verdict serve` logs of requests."""

    request_log: Annotated[
        str, typer.Option(metavar="DIR", help="Log a sample of the requests to Parquet files, for `verdict requests`.")
    ] = ""
    request_log_sample: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the sentences that is logged; equal ones all or none.")
    ] = 0.1
    request_log_days: Annotated[int, typer.Option(min=1, help="Days until logged requests are deleted.")] = 30
    request_log_sentences: Annotated[
        Literal["text", "redacted", "hashed", "off"],
        typer.Option(help="What is logged of a sentence; redacted: without e-mail addresses and numbers."),
    ] = "redacted"
    request_log_redact: Annotated[
        list[str] | None, typer.Option(metavar="REGEX", help="What else is redacted; repeatable.")
    ] = None

    def to_config(self) -> "RequestLogConfig | None":
        """Return the configuration of the log; None where nothing is logged."""
        if not self.request_log:
            return None
        from tasks.serving.request_log import RequestLogConfig

        return RequestLogConfig(
            self.request_log,
            self.request_log_sample,
            self.request_log_days,
            self.request_log_sentences,
            tuple(self.request_log_redact or ()),
        )


@dataclasses.dataclass(frozen=True)
class ChallengerOptions:
    """What a second model does beside the champion that `verdict serve` serves."""

    shadow: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Alias or version that computes what the champion answers, for comparison."),
    ] = ""
    shadow_load: Annotated[
        float, typer.Option(min=0.001, max=1, help="Share of the time in which the shadow may compute.")
    ] = 0.05
    canary: Annotated[
        str,
        typer.Option(
            metavar="SHARE", help="Share of the sentences, such as 5%, that the challenger (--shadow) answers."
        ),
    ] = ""
    canary_max_errors: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the canary's requests that may fail before it is taken back.")
    ] = 0.01
    canary_max_slowdown: Annotated[
        float, typer.Option(min=1, help="The canary's p99 latency, divided by the champion's, that it may have.")
    ] = 2.0

    def to_config(self) -> "ChallengerConfig | None":
        """Return what a challenger does; None where there is none.

        Raises:
            UsageError: if the canary's share is none.
        """
        if not self.shadow and not self.canary:
            return None
        from tasks.inference.bundle import CHALLENGER
        from tasks.serving.challenger import ChallengerConfig, parse_share

        return ChallengerConfig(
            self.shadow or CHALLENGER,
            bool(self.shadow),
            self.shadow_load,
            parse_share(self.canary) if self.canary else 0.0,
            self.canary_max_errors,
            self.canary_max_slowdown,
        )


@dataclasses.dataclass(frozen=True)
class ReplicaOptions:
    """How `verdict serve` spreads over a Ray cluster."""

    ray: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Serve with replicas on a Ray cluster, without the page: local, auto or HOST:PORT."
        ),
    ] = ""
    min_replicas: Annotated[int, typer.Option(min=1, max=1_000, help="With --ray: fewest replicas.")] = 1
    max_replicas: Annotated[
        int | None, typer.Option(min=1, max=1_000, help="With --ray: most replicas [as many as the fewest].")
    ] = None
    replica_requests: Annotated[
        float, typer.Option(min=0.1, help="With --ray: requests in each replica, above which there are more replicas.")
    ] = 32.0
    replica_cpus: Annotated[float, typer.Option(min=0.1, max=1_024, help="With --ray: CPUs of each replica.")] = 1.0
    replica_gpus: Annotated[
        float, typer.Option(min=0, max=64, help="With --ray: GPUs of each replica, or a share of one.")
    ] = 0.0

    def to_config(self) -> "ReplicaConfig":
        """Return how many replicas there are, and how large."""
        from tasks.serving.ray_serve import ReplicaConfig

        most = self.max_replicas or self.min_replicas
        return ReplicaConfig(self.min_replicas, most, self.replica_requests, self.replica_cpus, self.replica_gpus)


@dataclasses.dataclass(frozen=True)
class TrialRayOptions:
    """Where trials of `verdict sweep` run, beside this machine; fields are named as those of `CallCluster`."""

    ray: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Run trials as tasks of a Ray cluster: local, auto or HOST:PORT."),
    ] = ""
    trial_cpus: Annotated[float, typer.Option(min=0.1, max=1_024, help="With --ray: CPUs of each trial.")] = 1.0
    trial_gpus: Annotated[
        float | None,
        typer.Option(min=0, max=64, help="With --ray: GPUs of each trial, or a share of one [1 with a GPU, else 0]."),
    ] = None

    def to_cluster(self, device: str) -> dict[str, Any] | None:
        """Return what `CallCluster` is made of; None without Ray.

        Args:
            device: auto, cuda or cpu, of the settings.
        """
        if not self.ray:
            return None
        from tasks.training.device import resolve_device

        gpus = float(resolve_device(device) == "cuda") if self.trial_gpus is None else self.trial_gpus
        return {"address": self.ray, "cpus": self.trial_cpus, "gpus": gpus}


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which settings a command starts from, which data it reads, and with which encoder."""

    profile: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE", help="sample, cola, cola-small, or a TOML file.", autocompletion=complete_profile
        ),
    ] = "sample"
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS", help="Folder, file, https://...#sha256=HEX, hf:ORG/NAME or sample; several are merged."
        ),
    ] = None
    train: Annotated[str | None, typer.Option(metavar="FILE", help="Training file [in_domain_train.tsv].")] = None
    holdout: Annotated[str | None, typer.Option(metavar="FILE", help="Holdout file [out_of_domain_dev.tsv].")] = None
    columns: Annotated[
        str | None,
        typer.Option(metavar="PAIRS", help="Columns of a table: text=NAME,label=NAME[,source=NAME,mark=NAME]."),
    ] = None
    labels: Annotated[
        str | None, typer.Option(metavar="PAIRS", help="Names of the labels: acceptable=1,unacceptable=0.")
    ] = None
    encoder: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="Folder or hub id of an encoder, or packaged.")
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting, see: verdict settings.",
            autocompletion=complete_assignment,
        ),
    ] = None

    def resolve(self, device: Device | None = None) -> "ResolvedSettings":
        """Resolve profile, environment and flags; an option of its own wins over --set.

        Raises:
            UsageError: if a setting is unknown or its value not valid.
        """
        from tasks.core.settings_loader import load_settings, parse_setting

        named = {
            "data.path": self.data or None,
            "data.train": self.train,
            "data.holdout": self.holdout,
            "data.columns": self.columns,
            "data.labels": self.labels,
            "finetune.encoder": self.encoder,
            "finetune.device": device,
        }
        flags: dict[str, Any] = dict(parse_setting(text) for text in self.settings or ())
        return load_settings(self.profile, flags | {key: value for key, value in named.items() if value is not None})


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of its parameters that are dataclasses, in their place.

    Typer makes options of the parameters of a function's signature: this one is composed from all of them.
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    groups: dict[str, list[dataclasses.Field[Any]]] = {}
    composed_parameters = []
    own = inspect.signature(command).parameters
    for name, parameter in own.items():
        if not dataclasses.is_dataclass(parameter.annotation):
            composed_parameters.append(parameter.replace(kind=keyword))
            continue
        groups[name] = list(dataclasses.fields(parameter.annotation))
        composed_parameters += [
            inspect.Parameter(each.name, keyword, default=each.default, annotation=each.type) for each in groups[name]
        ]

    @functools.wraps(command)
    def composed(**values: Any) -> None:
        grouped = {
            name: own[name].annotation(**{field.name: values.pop(field.name) for field in fields})
            for name, fields in groups.items()
        }
        command(**grouped, **values)

    composed.__signature__ = inspect.Signature(composed_parameters)  # type: ignore[attr-defined]
    return composed


def print_result(value: Any, as_json: bool, show: Callable[[Any], None], document: Any = None) -> None:
    """Print a result for people, or as one JSON document.

    Args:
        value: the result.
        as_json: whether --json was given.
        show: prints it for people.
        document: its plain values, where the result itself is none.
    """
    if as_json:
        print(json_document(value if document is None else document))
    else:
        show(value)
