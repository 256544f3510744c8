"""The model repository for Triton: read by Triton's own protobufs, and run step by step as its ensemble says.

Triton itself is not here. The module `triton_python_backend_utils` exists only inside its processes; a small stand-in
takes its place, and ONNX Runtime runs the graph, so that the very files of the repository answer sentences.
"""

import ast
import importlib.util
import json
import shlex
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tokenizers import Tokenizer
from toy import SIGN, facts
from tritonclient.grpc import model_config_pb2

from flows.cli import app as cli
from tasks.core.errors import UsageError, VerdictError
from tasks.inference.bundle import VARIANTS, write_manifest
from tasks.inference.classifier import Classifier
from tasks.serving import triton
from tasks.serving.triton import TritonTuning, export_repository

GOOD, BAD = "the cat sees the dog", f"the cat {SIGN} sees the dog"
MODELS = ["acceptability", "acceptability_tokenise", "acceptability_graph", "acceptability_answer"]
TYPES = {
    "TYPE_STRING": np.object_,
    "TYPE_INT64": np.int64,
    "TYPE_INT32": np.int32,
    "TYPE_FP32": np.float32,
    "TYPE_FP16": np.float16,
    "TYPE_BOOL": np.bool_,
}
PRESENT = {"fp32": "exported", "fp16": "complete"}  # the bundle that serves a variant on GPUs


class Tensor(NamedTuple):
    called: str
    values: Any

    def as_numpy(self) -> Any:
        return self.values


class Response(NamedTuple):
    output_tensors: list[Tensor]
    error: str | None = None


@pytest.fixture(scope="module", autouse=True)
def stand_in() -> Any:
    """Stand for what Triton gives to its Python processes."""
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = Tensor, Response, str  # type: ignore[attr-defined]
    module.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name])  # type: ignore[attr-defined]
    module.triton_string_to_numpy = TYPES.get  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    yield
    del sys.modules[module.__name__]


def config_of(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def tensors_of(values: Any) -> dict[str, tuple[str, list[int]]]:
    return {value.name: (model_config_pb2.DataType.Name(value.data_type), list(value.dims)) for value in values}


def parameters_of(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


class Repository:
    """A repository as Triton would run it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configs = {path.name: config_of(path) for path in folder.iterdir() if path.is_dir()}
        self.ensemble = self.configs["acceptability"]
        self.models: dict[str, Callable[[list[dict[str, Any]]], list[Response]]] = {}
        for name, config in self.configs.items():
            if config.backend == "python":
                self.models[name] = self._load(name, config)
            elif config.backend == "onnxruntime":
                session = onnxruntime.InferenceSession(self._version(name) / "model.onnx")
                self.models[name] = lambda requests, run=session.run: [
                    Response([Tensor("logits", run(None, request)[0])]) for request in requests
                ]

    def _version(self, name: str) -> Path:
        (version,) = (path for path in (self.folder / name).iterdir() if path.is_dir())
        return version

    def _load(self, name: str, config: Any) -> Any:
        """Load model.py as Triton does, and hand it its configuration."""
        spec = importlib.util.spec_from_file_location(f"triton_{name}", self._version(name) / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        model.initialize({"model_config": json_format.MessageToJson(config, preserving_proto_field_name=True)})
        return model.execute

    def infer(self, *requests: list[bytes]) -> list[dict[str, Any] | str]:
        """Send requests of some sentences each through the ensemble, all in one batch; an answer may be an error."""
        pools: list[Any] = [{"text": np.array(texts, object).reshape(-1, 1)} for texts in requests]
        for step in self.ensemble.ensemble_scheduling.step:
            alive = [number for number, pool in enumerate(pools) if not isinstance(pool, str)]
            inputs = [{inner: pools[n][outer] for inner, outer in step.input_map.items()} for n in alive]
            declared = tensors_of(self.configs[step.model_name].output)
            for number, response in zip(alive, self.models[step.model_name](inputs), strict=True):
                if response.error:
                    pools[number] = response.error
                    continue
                for tensor in response.output_tensors:
                    kind, dims = declared[tensor.called]
                    assert tensor.values.dtype == TYPES[kind]
                    assert tensor.values.shape[0] == len(requests[number])
                    assert all(size in (-1, real) for size, real in zip(dims, tensor.values.shape[1:], strict=True))
                    pools[number][step.output_map[tensor.called]] = tensor.values
        return pools

    def judge(self, sentences: list[str]) -> list[tuple[str, float]]:
        (pool,) = self.infer([sentence.encode() for sentence in sentences])
        assert isinstance(pool, dict)
        return [
            (label.decode(), float(probability))
            for (label,), (probability,) in zip(pool["label"], pool["probability"], strict=True)
        ]


@pytest.fixture(scope="module", params=PRESENT)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A repository with each graph that may serve on GPUs, and what the export said of it."""
    bundle = request.getfixturevalue(PRESENT[request.param])["bundle"]
    return export_repository(bundle, str(tmp_path_factory.mktemp("triton") / request.param), "7"), bundle


@pytest.fixture(scope="module")
def repository(written: Any) -> Repository:
    return Repository(Path(written[0]["repository"]))


@pytest.fixture(scope="module")
def classifier(written: Any) -> Classifier:
    return Classifier.from_bundle(written[1], "cpu", written[0]["variant"])


@pytest.fixture
def exported_to(exported: Any, tmp_path: Path) -> Path:
    """A repository to write again."""
    return Path(export_repository(exported["bundle"], str(tmp_path / "models"), "3")["repository"])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tiny_graph(path: Path, inputs: list[str], kind: int = TensorProto.INT64, outputs: int = 2) -> None:
    """Write a graph whose logits are the sum of its inputs, times 0.1 and -0.1."""
    made = [helper.make_node("Cast", [name], [f"{name}_real"], to=TensorProto.FLOAT) for name in inputs]
    made.append(helper.make_node("Sum", [f"{name}_real" for name in inputs], ["sum"]))
    made.append(helper.make_node("ReduceSum", ["sum", "axis"], ["total"], keepdims=1))
    made.append(helper.make_node("MatMul", ["total", "weight"], ["logits"]))
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("weight", TensorProto.FLOAT, [1, outputs], [0.1, -0.1][:outputs]),
    ]
    given = [helper.make_tensor_value_info(name, kind, ["batch", "sequence"]) for name in inputs]
    taken = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])]
    graph = helper.make_graph(made, "tiny", given, taken, constants)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def small_bundle(folder: Path, exported: Any, inputs: list[str], kind: int = TensorProto.INT64, **changes: Any) -> Path:
    """Write a bundle around a tiny graph."""
    folder.mkdir()
    shutil.copy(Path(exported["bundle"]) / "tokenizer.json", folder)
    tiny_graph(folder / VARIANTS["fp32"], inputs, kind)
    write_manifest(folder, facts(**changes), {})
    return folder


def test_the_ensemble_labels_with_the_threshold_of_the_bundle(exported: Any, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    (acceptable,) = Classifier.from_bundle(bundle, "cpu").probabilities([GOOD])[:, 1]
    assert 0.5 < acceptable < 0.9999
    write_manifest(bundle, facts(decision_threshold=float(acceptable) + 1e-4), {})
    repository = Repository(Path(export_repository(str(bundle), str(tmp_path / "models"), "3")["repository"]))
    assert repository.judge([GOOD]) == [("unacceptable", pytest.approx(1 - acceptable, abs=1e-5))]


def test_the_repository_holds_the_ensemble_its_parts_and_nothing_else(written: Any) -> None:
    outcome, bundle = written
    assert outcome["models"] == MODELS
    assert outcome["version"] == "7"
    found = files_of(Path(outcome["repository"]))
    assert set(found) == {
        "verdict.json",
        "requirements.txt",
        *(f"{model}/config.pbtxt" for model in MODELS),
        "acceptability/7/bundle.json",
        "acceptability_tokenise/7/model.py",
        "acceptability_tokenise/7/tokenizer.json",
        "acceptability_graph/7/model.onnx",
        "acceptability_graph/labels.txt",
        "acceptability_answer/7/model.py",
    }
    assert found["acceptability_graph/7/model.onnx"] == (Path(bundle) / VARIANTS[outcome["variant"]]).read_bytes()
    assert found["acceptability_graph/labels.txt"] == b"unacceptable\nacceptable\n"
    assert found["requirements.txt"].startswith(b"tokenizers==")


def test_the_fused_graph_is_taken_where_the_bundle_holds_it(complete: Any, exported: Any, tmp_path: Path) -> None:
    assert export_repository(complete["bundle"], str(tmp_path / "a"), "1")["variant"] == "fp16"
    assert export_repository(exported["bundle"], str(tmp_path / "b"), "1")["variant"] == "fp32"


def test_every_tensor_of_the_ensemble_is_produced_and_consumed_with_one_type_and_shape(repository: Repository) -> None:
    flowing = tensors_of(repository.ensemble.input)
    unused = set(flowing)
    for step in repository.ensemble.ensemble_scheduling.step:
        config = repository.configs[step.model_name]
        assert step.model_version == 7
        assert set(step.input_map) == set(tensors_of(config.input))
        assert set(step.output_map) == set(tensors_of(config.output))
        for inner, shape in tensors_of(config.input).items():
            assert flowing[step.input_map[inner]] == shape
            unused.discard(step.input_map[inner])
        for inner, shape in tensors_of(config.output).items():
            assert step.output_map[inner] not in flowing
            flowing[step.output_map[inner]] = shape
            unused.add(step.output_map[inner])
    assert set(tensors_of(repository.ensemble.output)) == unused
    assert tensors_of(repository.ensemble.output).items() <= flowing.items()
    assert tensors_of(repository.ensemble.input) == {"text": ("TYPE_STRING", [1])}
    assert tensors_of(repository.ensemble.output) == {
        "label": ("TYPE_STRING", [1]),
        "probability": ("TYPE_FP32", [1]),
        "truncated": ("TYPE_BOOL", [1]),
    }


def test_dimensions_leave_out_the_batch(repository: Repository) -> None:
    config = repository.configs["acceptability_graph"]
    graph = onnx.load(repository.folder / "acceptability_graph" / "7" / "model.onnx").graph
    assert config.max_batch_size > 0
    for value in (*graph.input, *graph.output):
        _, dims = tensors_of([*config.input, *config.output])[value.name]
        axes = value.type.tensor_type.shape.dim
        assert not axes[0].HasField("dim_value")
        assert dims == [axis.dim_value if axis.HasField("dim_value") else -1 for axis in axes[1:]]
    assert {value.name for value in graph.input} == set(tensors_of(config.input))


def test_every_model_is_called_like_its_folder_and_names_version_and_digest(
    written: Any, repository: Repository
) -> None:
    assert set(repository.configs) == set(MODELS)
    for name, config in repository.configs.items():
        assert config.name == name
        origin = parameters_of(config)
        assert (origin["version"], origin["variant"]) == ("7", written[0]["variant"])
        assert origin["digest"] == written[0]["digest"]


def test_the_graph_runs_on_gpus_in_batches_and_the_rest_on_the_cpu(exported: Any, tmp_path: Path) -> None:
    made = export_repository(exported["bundle"], str(tmp_path / "models"), "7", TritonTuning(3, 16, 250))
    configs = Repository(Path(made["repository"])).configs
    assert {config.max_batch_size for config in configs.values()} == {16}
    for name in MODELS[1:]:
        (group,) = configs[name].instance_group
        wanted = "KIND_GPU" if name == "acceptability_graph" else "KIND_CPU"
        assert (model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind), group.count) == (wanted, 3)
        assert configs[name].HasField("dynamic_batching")
    delays = {name: configs[name].dynamic_batching.max_queue_delay_microseconds for name in MODELS[1:]}
    assert delays == {"acceptability_tokenise": 0, "acceptability_graph": 250, "acceptability_answer": 0}
    assert configs["acceptability"].platform == "ensemble"


@pytest.mark.parametrize(
    "sentences",
    [[GOOD, BAD], [""], ["", GOOD, ""], ["🙂 \u200d é\n\t\x00 中文 ﬀ"], [f"{BAD} " * 200, "cat"], [GOOD] * 64],
    ids=["two", "empty", "some empty", "unicode", "long", "many"],
)
def test_answers_equal_those_of_the_classifier(
    repository: Repository, classifier: Classifier, sentences: list[str]
) -> None:
    expected = classifier.predict(sentences)
    answers = repository.judge(sentences)
    assert [label for label, _ in answers] == [answer["label"] for answer in expected]
    # Other padding gives other sums in fp16.
    tolerance = 2e-3 if classifier.variant == "fp16" else 1e-6
    assert [probability for _, probability in answers] == pytest.approx(
        [answer["probability"] for answer in expected], abs=tolerance
    )


@given(sentences=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_any_unicode_is_answered_like_by_the_classifier(
    repository: Repository, classifier: Classifier, sentences: list[str]
) -> None:
    expected = [(answer["label"], answer["probability"]) for answer in classifier.predict(sentences)]
    for (label, probability), answer in zip(expected, repository.judge(sentences), strict=True):
        assert answer[1] == pytest.approx(probability, abs=2e-3)
        assert answer[0] == label or probability < 0.502


def test_requests_of_one_batch_get_one_length_so_that_the_graph_s_batcher_joins_them(repository: Repository) -> None:
    short, long = repository.infer([b"the cat"], [GOOD.encode(), b"the " * 9])
    assert isinstance(short, dict)
    assert isinstance(long, dict)
    assert short["input_ids"].shape == (1, 16)
    assert long["input_ids"].shape == (2, 16)
    assert short["attention_mask"].sum() == 4
    (alone,) = repository.infer([b"the cat"])
    assert isinstance(alone, dict)
    assert alone["input_ids"].shape == (1, 8)


def test_sentences_are_cut_at_the_bundle_s_length(exported: Any, tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle", exported, ["input_ids", "attention_mask"], max_length=13)
    repository = Repository(Path(export_repository(str(bundle), str(tmp_path / "models"), "1")["repository"]))
    (pool,) = repository.infer([b"the " * 100])
    assert isinstance(pool, dict)
    assert pool["input_ids"].shape == (1, 13)
    (pool,) = repository.infer([b"the " * 11, b"the " * 12, b""])
    assert isinstance(pool, dict)
    assert pool["truncated"].tolist() == [[False], [True], [False]]


def test_padding_and_truncation_that_a_tokenizer_json_brings_along_are_ignored(exported: Any, tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle", exported, ["input_ids", "attention_mask"], max_length=13)
    sentences = [b"the cat sees the dog", b"the " * 12]

    def answer(name: str) -> Any:
        folder = export_repository(str(bundle), str(tmp_path / name), "1")["repository"]
        return Repository(Path(folder)).infer(sentences)[0]

    expected = answer("without")
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.enable_padding(length=40, direction="left")
    tokenizer.enable_truncation(3, stride=1, direction="left")
    tokenizer.save(str(bundle / "tokenizer.json"))
    write_manifest(bundle, facts(max_length=13), {})
    found = answer("with")
    assert expected["attention_mask"].sum(axis=1).tolist() == [7, 13]
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values.tolist() for name, values in expected.items()
    }


def test_a_request_that_is_not_utf_8_fails_alone(repository: Repository) -> None:
    bad, good = repository.infer([b"\xff"], [GOOD.encode()])
    assert bad == "text is not UTF-8: invalid start byte at byte 0"
    assert isinstance(good, dict)
    assert good["label"].tolist() == [[b"acceptable"]]


def test_logits_that_are_no_numbers_are_an_error(repository: Repository) -> None:
    request = {"logits": np.array([[np.nan, 1.0]], np.float32)}
    (response,) = repository.models["acceptability_answer"]([request])
    assert response.error == "logits are NaN or Inf"


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
@pytest.mark.parametrize("inputs", [["input_ids"], ["attention_mask", "input_ids"], list(triton.TOKENIZER_OUTPUTS)])
def test_the_tokens_come_as_the_graph_wants_them(exported: Any, tmp_path: Path, inputs: list[str], kind: int) -> None:
    """Encoders without token types, and graphs that take 32-bit ids."""
    bundle = small_bundle(tmp_path / "bundle", exported, inputs, kind)
    repository = Repository(Path(export_repository(str(bundle), str(tmp_path / "models"), "1")["repository"]))
    wanted = {name: (triton.ONNX_TYPES[kind], [-1]) for name in inputs}
    assert tensors_of(repository.configs["acceptability_tokenise"].output) == wanted | {"truncated": ("TYPE_BOOL", [1])}
    assert tensors_of(repository.configs["acceptability_graph"].input) == wanted
    assert [label for label, _ in repository.judge([GOOD])] == ["unacceptable"]


def test_labels_of_any_letters_arrive_as_they_are(exported: Any, tmp_path: Path) -> None:
    labels = ['"so" \\ so', "好 🙂"]
    bundle = small_bundle(tmp_path / "bundle", exported, ["input_ids"], labels=labels)
    repository = Repository(Path(export_repository(str(bundle), str(tmp_path / "models"), "1")["repository"]))
    assert json.loads(parameters_of(repository.ensemble)["labels"]) == labels
    assert [label for label, _ in repository.judge([GOOD])] == labels[:1]


def test_a_bundle_that_is_not_registered_is_version_1_and_names_its_digest(exported: Any, tmp_path: Path) -> None:
    made = export_repository(exported["bundle"], str(tmp_path / "models"), None)
    assert made["version"] == "1"
    parameters = parameters_of(config_of(Path(made["repository"]) / "acceptability"))
    assert parameters["version"] == f"sha256:{exported['digest'][:12]}"


@pytest.mark.parametrize("source", ["tokenise.py", "answer.py"])
def test_what_runs_inside_triton_needs_numpy_and_tokenizers_alone(source: str) -> None:
    names = set()
    for node in ast.walk(ast.parse((triton.TRITON_TEMPLATES / source).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    allowed = {"numpy", "tokenizers", "triton_python_backend_utils"}
    assert names - set(sys.stdlib_module_names) <= allowed


def test_a_new_export_replaces_ours_and_leaves_the_models_of_others(exported_to: Path, complete: Any) -> None:
    (exported_to / "translator" / "1").mkdir(parents=True)
    (exported_to / "translator" / "config.pbtxt").write_text("theirs")
    (exported_to / "acceptability_graph" / "3" / "left.over").write_text("old")
    export_repository(complete["bundle"], str(exported_to), "4")
    found = files_of(exported_to)
    assert found["translator/config.pbtxt"] == b"theirs"
    assert {name.split("/")[1] for name in found if name.startswith("acceptability_graph/")} == {
        "config.pbtxt",
        "labels.txt",
        "4",
    }
    assert [path.name for path in exported_to.parent.iterdir()] == ["models"]  # nothing is left beside it


def test_an_empty_folder_is_taken(exported: Any, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    export_repository(exported["bundle"], str(tmp_path / "models"), "1")
    assert (tmp_path / "models" / "acceptability" / "config.pbtxt").is_file()


def test_the_same_bundle_gives_the_same_files(exported: Any, exported_to: Path) -> None:
    before = files_of(exported_to)
    export_repository(exported["bundle"], str(exported_to), "3")
    assert files_of(exported_to) == before


@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"verdict.json": "{}"}, {"verdict.json": "no JSON"}])
def test_a_folder_of_somebody_else_is_refused_and_left_alone(
    exported: Any, tmp_path: Path, content: dict[str, str]
) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=r"holds files, but no verdict\.json of `verdict export-triton`") as caught:
        export_repository(exported["bundle"], str(tmp_path), "1")
    assert "\n" not in str(caught.value)
    assert files_of(tmp_path) == {name: text.encode() for name, text in content.items()}


def test_a_file_in_the_place_of_the_folder_is_refused(exported: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file; expected a new folder"):
        export_repository(exported["bundle"], str(tmp_path / "file"), "1")
    with pytest.raises(VerdictError, match="cannot be written"):
        export_repository(exported["bundle"], str(tmp_path / "file" / "models"), "1")


def test_a_damaged_bundle_is_refused_before_anything_is_written(exported: Any, exported_to: Path) -> None:
    before = files_of(exported_to)
    bundle = Path(shutil.copytree(exported["bundle"], exported_to.parent / "bundle"))
    (bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(VerdictError, match=r"tokenizer\.json does not match its SHA-256 in bundle.json"):
        export_repository(str(bundle), str(exported_to), "4")
    assert files_of(exported_to) == before


def test_a_graph_that_wants_something_else_is_refused(exported: Any, tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle", exported, ["input_ids", "pixels"])
    with pytest.raises(VerdictError, match=r"model\.onnx takes .*pixels.* and gives"):
        export_repository(str(bundle), str(tmp_path / "models"), "1")
    assert not (tmp_path / "models").exists()


def test_a_full_disk_leaves_the_old_repository(
    complete: Any, exported_to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(exported_to)

    def fail(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(VerdictError, match="cannot be written \\(No space left on device\\)"):
        export_repository(complete["bundle"], str(exported_to), "4")
    assert files_of(exported_to) == before


@pytest.mark.parametrize("last", range(8))
def test_an_export_that_is_stopped_leaves_no_ensemble_of_parts_that_do_not_belong_together(
    complete: Any, exported_to: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """Stopped before each of the eight moves: four old models out, four new ones in."""
    real, moves = Path.rename, []

    def rename(path: Path, target: Path) -> Path:
        if path.name in MODELS:
            if len(moves) == last:
                raise KeyboardInterrupt
            moves.append(path.name)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        export_repository(complete["bundle"], str(exported_to), "4")
    assert moves == [*MODELS, *reversed(MODELS)][:last]
    if (exported_to / "acceptability").exists():
        assert last == 0  # nothing was touched
        assert {parameters_of(config_of(exported_to / name))["version"] for name in MODELS} == {"3"}
    monkeypatch.undo()
    export_repository(complete["bundle"], str(exported_to), "4")
    assert {parameters_of(config_of(exported_to / name))["version"] for name in MODELS} == {"4"}


def test_the_command_for_docker_serves_that_folder_on_loopback(tmp_path: Path) -> None:
    words = shlex.split(triton.docker_command(tmp_path / "with space"))
    assert words[:3] == ["docker", "run", "--rm"]
    assert f"{tmp_path}/with space:/models:ro" in words
    assert [words[at + 1] for at, word in enumerate(words) if word == "-p"] == [
        f"127.0.0.1:{port}:{port}" for port in (8000, 8001, 8002)
    ]
    assert words[-1].endswith("tritonserver --model-repository /models")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export-triton", *arguments])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_the_command_says_what_it_wrote_and_what_to_run_next(
    exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, str(tmp_path / "models"), "--model", exported["bundle"])
    assert code == 0
    assert f"repository  {tmp_path / 'models'}" in out
    assert "graph       fp32 on GPUs; the bundle has no fp16 graph, which would be faster" in out
    assert triton.docker_command(tmp_path / "models") in out


def test_the_command_prints_one_json_document(
    complete: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--instances", "1", "--max-batch", "8", "--max-queue-delay-us", "0", "--json"]
    code, out, _ = call(capsys, str(tmp_path / "models"), "--model", complete["bundle"], *options)
    assert code == 0
    answer = json.loads(out)
    assert (answer["models"], answer["variant"], answer["digest"]) == (MODELS, "fp16", complete["digest"])
    assert config_of(tmp_path / "models" / "acceptability_graph").max_batch_size == 8


@pytest.mark.parametrize(
    "options",
    [
        ["--instances", "0"],
        ["--instances", "65"],
        ["--max-batch", "0"],
        ["--max-batch", "4097"],
        ["--max-queue-delay-us", "-1"],
        ["--max-queue-delay-us", "1000001"],
        ["--model", "acceptability"],
    ],
)
def test_options_out_of_bounds_are_wrong_usage(
    exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    code, out, err = call(capsys, str(tmp_path / "models"), "--model", exported["bundle"], *options)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert not (tmp_path / "models").exists()


def test_a_graph_that_onnx_cannot_read_is_refused_in_one_line(exported: Any, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    graph = bundle / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x42\x01\xff")  # an operator set (field 8) that is no message
    write_manifest(bundle, facts(), {})
    with pytest.raises(VerdictError, match=r"model\.onnx cannot be read \(") as caught:
        export_repository(str(bundle), str(tmp_path / "out"), None)
    assert "\n" not in str(caught.value)
