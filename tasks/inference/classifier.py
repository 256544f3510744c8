"""Classifies sentences with a bundle; needs only onnxruntime, tokenizers and numpy.

    from verdict_inference import Classifier
    classifier = Classifier.from_bundle("path/of/bundle")
    classifier.predict(["The cat sat on the mat."])
    # [{"sentence": ..., "label": ..., "probability": ..., "truncated": False}]

Shape letters: N sentences, B of a batch, S tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self, TypedDict

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..core.errors import OUT_OF_MEMORY, NoAnswer, VerdictError, first_line, is_out_of_memory
from .batch_pool import BatchPool
from .bulk_tokenizer import BulkTokenizer
from .bundle import TOKENIZER, VARIANTS, Manifest, serving_variant, variants_of, verify
from .cpu_limits import available_cpus
from .decision import choose_labels, threshold_of
from .external_data import reject_external_data
from .packed_shapes import packed_batches
from .runner import Runner
from .sessions import CUDA, open_session, should_try_gpu, warn_if_older
from .tokenization import TokenIds, TokenizedText, open_tokenizer, sorted_batches, tokenise

CPU_BATCH = 32  # sentences of a batch on a CPU
CHUNK_SENTENCES = 16_384  # sentences tokenised at once; the next chunk is tokenised while this one is computed
POOL_MIN_SENTENCES = 2_000  # from here on batches run in parallel; on a CPU fewer do not repay opening the session
GPU_IN_FLIGHT = 2  # concurrent batches on a GPU


class Prediction(TypedDict):
    """Prediction for one sentence; `probability` is that of `label`, below 0.5 where the bundle's threshold says so.

    `truncated` is true where the sentence is longer than the bundle's max_length: the model read its beginning only.
    """

    sentence: str
    label: str
    probability: float
    truncated: bool


class AnswerArrays(NamedTuple):
    """Answers to N sentences, in arrays; see `Prediction`."""

    labels: NDArray[np.intp]
    """[N], in the order of manifest["labels"]."""
    probabilities: NDArray[np.float64]
    """[N], of these labels; NaN where the model gives NaN or Inf: the label says nothing then."""
    truncated: NDArray[np.bool_]
    """[N]."""


class Classifier:
    """Classifies sentences with a verified bundle; thread-safe."""

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer, manifest: Manifest, variant: str, pool: BatchPool | None = None
    ) -> None:
        """Assemble a classifier; see `from_bundle`.

        Args:
            runner: runs the graph.
            tokenizer: without padding, truncating to the manifest's max_length.
            manifest: of the bundle.
            variant: name of the graph that runs.
            pool: runs large numbers of sentences; None: `runner` does.
        """
        self.manifest, self.variant, self.provider = manifest, variant, runner.provider
        self._runner, self._pool, self._tokenizer = runner, pool, tokenizer

    @classmethod
    def from_bundle(
        cls,
        path: str | Path,
        device: str = "auto",
        variant: str | None = None,
        *,
        spin: bool = True,
        expected: str = "",
        threads: int = 0,
        gpu: int = 0,
    ) -> Self:
        """Verify a bundle and load the variant for the device.

        Args:
            path: the bundle's folder.
            device: cuda, cpu, or auto: cuda if a GPU works, else cpu.
            variant: fp32, fp16 or int8; None for the device's own (cuda: fp16, cpu: int8), or fp32 if that is absent.
            spin: see `open_session`; False suits a job beside others, True a service with CPUs of its own.
            expected: `manifest_digest` of the bundle that it has to be; empty: any.
            threads: that compute on a CPU; 0 for one on each core that the process may use.
            gpu: number of the GPU, of those that the process sees; see `open_session`.

        Raises:
            VerdictError: if the bundle is corrupt, keeps weights in other files or lacks the variant, or if device is
                cuda and no GPU works.
        """
        folder = Path(path)
        manifest = verify(folder, expected)
        if variant and variant not in variants_of(manifest):
            raise VerdictError(f"bundle {folder} holds no variant {variant!r}; expected {variants_of(manifest)}")
        warn_if_older(manifest["onnxruntime"], folder)
        for name in variants_of(manifest):
            reject_external_data(folder / VARIANTS[name])
        with bundle_errors(folder, f"{TOKENIZER} cannot be loaded"):
            tokenizer = open_tokenizer(folder / TOKENIZER, manifest["max_length"])
        for target in ("cuda", "cpu") if should_try_gpu(device) else ("cpu",):
            chosen = variant or serving_variant(manifest, target)
            on = device if target == "cuda" else "cpu"
            with bundle_errors(folder, f"{VARIANTS[chosen]} cannot be opened"):
                graph = folder / VARIANTS[chosen]
                session = open_session(graph, on, capture=True, threads=threads, spin=spin, gpu=gpu)
            if target == "cpu" or session.get_providers()[0] == CUDA:
                break  # else there is a GPU that does not work
        runner = Runner(session, manifest["max_length"])

        def open_single_threaded() -> Runner:
            verify(folder, manifest["manifest_digest"])
            return Runner(open_session(folder / VARIANTS[chosen], "cpu", threads=1), manifest["max_length"])

        if target == "cuda":
            return cls(runner, tokenizer, manifest, chosen, BatchPool(lambda: runner, runner, GPU_IN_FLIGHT))
        cores = threads or available_cpus()
        pool = BatchPool(open_single_threaded, runner, cores) if cores > 1 else None
        return cls(runner, tokenizer, manifest, chosen, pool)

    def logits(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Return logits [N, 2] in input order."""
        return self._run(sentences)[0]

    def _run(
        self, sentences: Sequence[str], on_tokenised: Callable[[], None] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return logits [N, 2], and which sentences were truncated [N], in input order."""
        result = np.zeros((len(sentences), len(self.manifest["labels"])), np.float32)
        truncated = np.zeros(len(sentences), np.bool_)
        runner = self._pool if self._pool and len(sentences) >= POOL_MIN_SENTENCES else self._runner
        indices: list[TokenIds] = []  # of each batch

        def batches() -> Iterator[tuple[TokenIds, TokenIds]]:
            for start, tokens in self._tokenized(sentences):
                if on_tokenised:
                    on_tokenised()
                truncated[start : start + len(tokens.lengths)] = tokens.truncated
                for rows in self._batch_indices(tokens.lengths):
                    indices.append(start + rows)
                    yield tokens.batch(rows, self.manifest["pad_id"])

        # One stream over all chunks: a device that waits at the end of each chunk loses a batch's time.
        for number, logits in enumerate(runner.run_batches(batches())):
            result[indices[number]] = logits
        if len(sentences) > 1:
            for number in np.flatnonzero(~np.isfinite(result).all(axis=1)).tolist():  # sentences of a row share NaN
                result[number] = self._run([sentences[number]])[0][0]
        return result, truncated

    def _batch_indices(self, lengths: TokenIds) -> list[TokenIds]:
        """Return the sentence indices [B] of each batch, given lengths [N] in tokens."""
        if self.provider == CUDA:
            return packed_batches(lengths)
        return sorted_batches(lengths, CPU_BATCH)

    def _tokenized(self, sentences: Sequence[str]) -> Iterator[tuple[int, TokenizedText]]:
        """Yield each chunk's first index and its tokens; the next chunk is tokenised in the background."""
        starts = range(0, len(sentences), CHUNK_SENTENCES)
        if len(starts) <= 1:
            yield from ((start, self._tokenise(sentences)) for start in starts)
            return
        with ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(self._tokenise, sentences[:CHUNK_SENTENCES])
            for start in starts:
                tokens = pending.result()
                after = start + CHUNK_SENTENCES
                pending = ahead.submit(self._tokenise, sentences[after : after + CHUNK_SENTENCES])
                yield start, tokens

    @cached_property
    def _bulk(self) -> BulkTokenizer | None:
        """Made at first use: it loads the vocabulary a second time, which one sentence need not wait for."""
        return BulkTokenizer.create(self._tokenizer)

    def _tokenise(self, sentences: Sequence[str]) -> TokenizedText:
        if len(sentences) >= POOL_MIN_SENTENCES and self._bulk:
            return self._bulk.tokenise(sentences)
        return tokenise(self._tokenizer, sentences)

    def count_tokens(self, sentences: Sequence[str]) -> list[int]:
        """Return how many tokens of each sentence the model reads, with the special ones, at most its limit."""
        return [int(length) for length in self._tokenise(sentences).lengths]

    @property
    def threshold(self) -> float:
        """The bundle's decision threshold."""
        return threshold_of(self.manifest)

    def probabilities(self, sentences: Sequence[str]) -> NDArray[np.float64]:
        """Return the probability of each label, [N, 2] in the order of manifest["labels"], in input order."""
        return _softmax(self.logits(sentences))

    def answer(self, sentences: Sequence[str], on_tokenised: Callable[[], None] | None = None) -> AnswerArrays:
        """Classify sentences, in input order, as arrays: without an object for each, for millions of them.

        Args:
            sentences: any number.
            on_tokenised: called when the sentences, or a chunk of very many, have become tokens.

        Raises:
            VerdictError: if an item is not a string, or not valid Unicode.
        """
        for item in sentences:
            if not isinstance(item, str):
                raise VerdictError(f"sentence {item!r} is a {type(item).__name__}; expected strings")
        try:
            logits, truncated = self._run(sentences, on_tokenised)
        except TypeError as error:  # of tokenizers, for a surrogate: half of a character, as a wrong encoding leaves
            raise _name_surrogate(sentences) or error from None
        probabilities = _softmax(logits)
        best = choose_labels(probabilities[:, 1], self.threshold)
        return AnswerArrays(best, probabilities[np.arange(len(best)), best], truncated)

    def predict(self, sentences: Sequence[str], on_tokenised: Callable[[], None] | None = None) -> list[Prediction]:
        """Classify sentences, in input order; see `answer`.

        Raises:
            NoAnswer: if the model gives NaN for one of them.
        """
        labels = self.manifest["labels"]
        found = self.answer(sentences, on_tokenised)
        if (missing := np.isnan(found.probabilities)).any():
            raise NoAnswer(int(missing.argmax()), self.variant)
        answers = [column.tolist() for column in found]
        return [
            Prediction(sentence=text, label=labels[label], probability=probability, truncated=cut)
            for text, label, probability, cut in zip(sentences, *answers, strict=True)
        ]


@contextmanager
def bundle_errors(bundle: str | Path, what: str) -> Iterator[None]:
    """Turn what tokenizers and ONNX Runtime raise, which has no common type, into one line.

    Raises:
        VerdictError: which names the bundle, what failed and the reason.
    """
    try:
        yield
    except (VerdictError, MemoryError):
        raise
    except Exception as error:
        reason = first_line(error, 200).replace(f"{bundle}/", "")
        advice = OUT_OF_MEMORY if is_out_of_memory(error) else "fetch it again from the registry"
        raise VerdictError(f"bundle {bundle}: {what} ({reason}); {advice}") from error


def _name_surrogate(sentences: Sequence[str]) -> VerdictError | None:
    """Return an error that names the first sentence that is not valid Unicode; None if all are."""
    for number, sentence in enumerate(sentences, start=1):
        try:
            sentence.encode()
        except UnicodeEncodeError:
            return VerdictError(f"sentence {number}, {sentence[:40]!r}, is not valid Unicode; expected UTF-8 text")
    return None


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probability of each label, [N, 2]; NaN where a logit is NaN or Inf."""
    exact = logits.astype(np.float64)
    exact[~np.isfinite(exact).all(axis=1)] = np.nan
    powers = np.exp(exact - exact.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
