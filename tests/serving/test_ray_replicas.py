"""The options that replicas get of `verdict serve --ray`, and what is refused; serving itself is in tests/services."""

from pathlib import Path

import pytest

from tasks.core.errors import UsageError
from tasks.serving.challenger import ChallengerConfig
from tasks.serving.ray_serve import ReplicaConfig, _check_options, config_of_replicas
from tasks.serving.request_log import RequestLogConfig
from tasks.serving.server import ServerConfig


def test_paths_of_options_hold_in_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "3").mkdir()  # a number is a version
    monkeypatch.chdir(tmp_path)
    config = ServerConfig(
        "bundle", api_keys="keys.txt", request_log=RequestLogConfig("requests", 0.5), challenger=ChallengerConfig("3")
    )
    found = config_of_replicas(config)
    assert (found.model, found.api_keys) == (str(tmp_path / "bundle"), str(tmp_path / "keys.txt"))
    assert found.request_log == RequestLogConfig(str(tmp_path / "requests"), 0.5)
    assert found.challenger == ChallengerConfig("3")
    plain = config_of_replicas(ServerConfig())
    assert plain == ServerConfig(page=False)


@pytest.mark.parametrize(
    ("config", "replicas", "message"),
    [
        (ServerConfig(), ReplicaConfig(3, 2), r"--max-replicas 2 is refused; expected 3 \(--min-replicas\) or more"),
        (
            ServerConfig(),
            ReplicaConfig(gpus=1.5),
            "1.5 GPUs for each are refused; expected a whole number, or a share of",
        ),
        (ServerConfig(port=0), ReplicaConfig(), "--port 0 is refused with --ray; expected the port"),
        (ServerConfig(feedback="flags.tsv"), ReplicaConfig(), "--feedback is an option of the page"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    config: ServerConfig, replicas: ReplicaConfig, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        _check_options(config, replicas)
