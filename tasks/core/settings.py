"""Every setting of the product in one typed object, with unit, default and bounds.

How values get there, and which layer set them: tasks/core/settings_loader.py.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from tasks.core.addresses import SAMPLE_ADDRESS
from tasks.core.column_options import format_pairs, parse_columns, parse_labels
from tasks.core.finetune_settings import Address, FinetuneSettings, SettingsGroup, Share
from tasks.core.policy import Policy, load_policy

ENV_PREFIX = "VERDICT_"

Count = Annotated[int, Field(ge=0)]


def _split_addresses(value: Any) -> Any:
    """Accept one address, or a JSON list of several, from the environment or a flag."""
    if not isinstance(value, str):
        return value
    if value.startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"not a JSON list of addresses: {error}") from error
    return (value,) if value else ()


Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split_addresses)]
# Written as ROLE=NAME,ROLE=NAME in profiles, environment and flags, and wherever settings are shown or recorded.
_as_text = PlainSerializer(format_pairs, return_type=str)
Columns = Annotated[dict[str, str], NoDecode, BeforeValidator(parse_columns), _as_text]
Labels = Annotated[dict[str, int], NoDecode, BeforeValidator(parse_labels), _as_text]


class DataSettings(SettingsGroup):
    """Where sentences come from and how they are split."""

    path: Addresses = (SAMPLE_ADDRESS,)
    """Addresses, merged: folder, file, https://...#sha256=HEX, hf:ORG/NAME, or "sample" (bundled)."""
    train: Address = ""
    """Training file; empty for in_domain_train.tsv."""
    holdout: Address = ""
    """Holdout file; empty for out_of_domain_dev.tsv."""
    columns: Columns = {}
    """Columns of tables, nested ones as data.text: text=NAME,label=NAME,source=NAME,mark=NAME."""
    labels: Labels = {}
    """Names of the labels in any case, besides 0 and 1: acceptable=1,unacceptable=0."""
    offline: bool = False
    """Use only files on this machine; download nothing."""
    holdout_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the sentences that is split off as holdout if no holdout file is given."""
    max_quarantined: Share = 0.01
    """Largest share of rows that may be quarantined."""
    validation_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of the training sentences used for validation, which selects the best epoch."""
    group: Literal["auto", "sentence", "source"] = "auto"
    """What validation keeps together: equal sentences, or whole sources; auto: sources, if the holdout is by others."""
    max_chars: Annotated[int, Field(ge=1)] = 2000
    """Characters of the longest sentence that is kept; longer ones are quarantined."""
    text: Address = ""
    """Sentences without labels for corruption stage and teacher: .txt, .csv, .jsonl, .parquet, or https://...#sha256=HEX."""


class GateSettings(SettingsGroup):
    """Limits of the data gate."""

    min_rows: Count = 100
    """Smallest number of training rows."""
    min_holdout_rows: Count = 50
    """Smallest number of holdout rows."""
    min_acceptable: Share = 0.2
    """Smallest share of acceptable sentences."""
    max_acceptable: Share = 0.9
    """Largest share of acceptable sentences."""
    min_characters: Count = 1
    """Characters below which a sentence counts as too short."""
    max_characters: Count = 1000
    """Characters above which a sentence counts as too long."""
    min_words: Count = 1
    """Words below which a sentence counts as too short."""
    max_words: Count = 200
    """Words above which a sentence counts as too long."""
    max_odd_lengths: Share = 0.01
    """Largest share of sentences that are too short or too long."""
    max_control: Share = 0.01
    """Largest share of sentences with control characters."""
    max_duplicates: Share = 0.05
    """Largest share of rows that repeat an earlier sentence (after normalisation)."""
    max_conflicts: Share = 0.02
    """Largest share of rows whose sentence has both labels (after normalisation)."""
    max_leak: Share = 0.05
    """Leakage: largest share of holdout rows whose sentence is also a training row (after normalisation)."""
    max_unseen_sources: Share = 1.0
    """Largest share of holdout rows whose source has no training rows; 1 allows an out-of-domain holdout."""
    max_unknown: Share = 0.01
    """Largest share of word pieces that are not in the encoder's vocabulary (the [UNK] rate)."""
    max_truncated: Share = 0.05
    """Largest share of sentences that are truncated: at finetune.max_length tokens, or at the encoder's positions."""
    drift: Literal["warn", "refuse"] = "warn"
    """Whether drift from the champion's training data is a warning or rejects the data."""
    drift_level: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Significance level: drift counts only where its p-value is below this."""
    max_label_shift: Share = 0.05
    """Drift: largest difference of the share of acceptable sentences."""
    max_length_shift: Share = 0.1
    """Drift: largest Kolmogorov-Smirnov distance of the sentence lengths."""
    max_source_shift: Share = 0.3
    """Drift: largest Jensen-Shannon distance of the sources."""
    max_vocabulary_shift: Share = 0.3
    """Drift: largest Jensen-Shannon distance of the words."""

    @model_validator(mode="after")
    def _ordered(self) -> "GateSettings":
        for name in ("acceptable", "characters", "words"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low >= high:
                raise ValueError(f"gate.min_{name} ({low}) must be below gate.max_{name} ({high})")
        return self


class ExportSettings(SettingsGroup):
    """What the bundle states besides the graphs."""

    decision_threshold: Literal["fixed", "validation"] = "fixed"
    """Probability above which a sentence is acceptable: fixed at 0.5, or that with the best validation MCC."""


class JudgeSettings(Policy):
    """The promotion policy, whose numbers can each be overridden here, and how it is applied."""

    policy: Address = ""
    """TOML file of a policy; empty for mlflow/policy.toml."""
    resamples: Annotated[int, Field(ge=100, le=1_000_000)] = 10_000
    """Bootstrap resamples of each confidence interval."""
    wait_for_person: bool = False
    """Whether a HOLD suspends a run of the deployment retrain until a person decides; it occupies no GPU."""
    wait_hours: Annotated[float, Field(gt=0, le=8_760)] = 72.0
    """Hours it is suspended; after that the HOLD stays, for verdict approve or reject."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_the_policy(cls, values: Any) -> Any:
        path = values.get("policy", "") if isinstance(values, dict) else None
        return {**load_policy(path).model_dump(), **values} if isinstance(path, str) else values

    def chosen_policy(self) -> Policy:
        """Return the policy with the overridden numbers."""
        return Policy.model_validate(self.model_dump(include=set(Policy.model_fields)))


class WatchSettings(SettingsGroup):
    """What a check of the data and of what was served may start."""

    retrain_on: Literal["never", "on_change", "on_drift"] = "on_change"
    """When new data starts a retraining run."""
    request_log: Address = ""
    """Folder of a request log, of which a check reads what was served; empty for none."""
    request_hours: Annotated[float, Field(gt=0, le=8_760)] = 24.0
    """Hours of the request log that are read."""
    retrain_on_served: Literal["never", "on_drift", "on_drop", "on_either"] = "never"
    """What of the served sentences starts a retraining run, if there is data other than the champion's."""
    max_estimated_drop: Annotated[float, Field(ge=0, le=2)] = 0.1
    """A drop: the interval of the estimated MCC lies further than this below the champion's MCC on its holdout."""
    max_probability_shift: Share = 0.1
    """Drift of what was served: largest Kolmogorov-Smirnov distance of the probabilities from those on the holdout."""


class Settings(BaseSettings):
    """All settings of a run."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__")

    data: DataSettings = DataSettings()
    gate: GateSettings = GateSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    export: ExportSettings = ExportSettings()
    judge: JudgeSettings = Field(default_factory=lambda: JudgeSettings.model_validate({}))  # read when needed
    watch: WatchSettings = WatchSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read no environment here: `load_settings` does, because it records which layer set a value."""
        return (init_settings,)
