"""Inference with ONNX Runtime on a bundle; needs onnxruntime, tokenizers and numpy, and no torch.

    from tasks.inference.classifier import Classifier
    classifier = Classifier.from_bundle("path/of/bundle")
    classifier.predict(["The cat sat on the mat."])

Shape letters: N sentences, B of a batch, S tokens.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypedDict

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..core.errors import VerdictError
from .batch_pool import BatchPool
from .bundle import TOKENIZER, VARIANTS, Manifest, serving_variant, variants_of, verify
from .external_data import reject_external_data
from .runner import Runner
from .sessions import CUDA, open_session, physical_cores, should_try_gpu
from .tokenization import TokenIds, TokenizedText, packed_batches, sorted_batches, tokenise

CPU_BATCH = 32  # sentences, on a CPU
PACK_ROWS, PACK_TOKENS = 256, 128  # rows of a batch on a GPU, and tokens of a row
CHUNK_SENTENCES = 16_384  # sentences that are tokenised at once: while the next ones are, these are computed
POOL_MIN_SENTENCES = (
    2_000  # sentences from which on batches run side by side: on a CPU fewer do not pay for the opening
)
GPU_IN_FLIGHT = 2  # batches at a time on a GPU


class Prediction(TypedDict):
    """The answer to one sentence; the probability is that of the label."""

    sentence: str
    label: str
    probability: float


class Classifier:
    """Judges sentences with a verified bundle."""

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer, manifest: Manifest, variant: str, crowd: BatchPool | None = None
    ) -> None:
        self.manifest, self.variant, self.provider = manifest, variant, runner.provider
        self._runner, self._crowd, self._tokenizer = runner, crowd, tokenizer

    @classmethod
    def from_bundle(cls, path: str | Path, device: str = "auto", variant: str | None = None) -> Self:
        """Verify a bundle and load the variant that serves on the device.

        Args:
            path: the bundle's folder.
            device: cuda, cpu, or auto: a GPU where one works.
            variant: fp32, fp16 or int8; None for the fast one of the device, or fp32 where the bundle lacks that.

        Raises:
            VerdictError: if the bundle is damaged, keeps weights elsewhere or lacks the variant, or cuda is wanted and
                does not work.
        """
        folder = Path(path)
        manifest = verify(folder)
        if variant and variant not in variants_of(manifest):
            raise VerdictError(f"bundle {folder} holds no variant {variant!r}; expected {variants_of(manifest)}")
        for name in variants_of(manifest):
            reject_external_data(folder / VARIANTS[name])
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(manifest["max_length"])
        for place in ("cuda", "cpu") if should_try_gpu(device) else ("cpu",):
            chosen = variant or serving_variant(manifest, place)
            session = open_session(folder / VARIANTS[chosen], device if place == "cuda" else "cpu", capture=True)
            if place == "cpu" or session.get_providers()[0] == CUDA:
                break  # else a GPU is there but does not work
        runner = Runner(session)

        def open_for_one_core() -> Runner:
            if verify(folder)["digest"] != manifest["digest"]:
                raise VerdictError(f"bundle {folder} is another one by now")
            return Runner(open_session(folder / VARIANTS[chosen], "cpu", threads=1))

        if place == "cuda":
            return cls(runner, tokenizer, manifest, chosen, BatchPool(lambda: runner, runner, GPU_IN_FLIGHT))
        crowd = BatchPool(open_for_one_core, runner, physical_cores()) if physical_cores() > 1 else None
        return cls(runner, tokenizer, manifest, chosen, crowd)

    def logits(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Return logits [N, 2] in input order."""
        result = np.zeros((len(sentences), len(self.manifest["labels"])), np.float32)
        runner = self._crowd if self._crowd and len(sentences) >= POOL_MIN_SENTENCES else self._runner
        for start, tokens in self._tokenized(sentences):
            places = self._batches(tokens.lengths)
            batches = (tokens.batch(rows, self.manifest["pad_id"]) for rows in places)
            for rows, logits in zip(places, runner.run_batches(batches), strict=True):
                result[start + rows] = logits
        return result

    def _batches(self, lengths: TokenIds) -> list[TokenIds]:
        if self.provider == CUDA:
            return packed_batches(lengths, PACK_ROWS, PACK_TOKENS)
        return sorted_batches(lengths, CPU_BATCH)

    def _tokenized(self, sentences: Sequence[str]) -> Iterator[tuple[int, TokenizedText]]:
        """Yield tokens of one chunk after another with its place, each made while the one before is worked on."""
        starts = range(0, len(sentences), CHUNK_SENTENCES)
        if len(starts) <= 1:
            yield from ((start, tokenise(self._tokenizer, sentences)) for start in starts)
            return
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(tokenise, self._tokenizer, sentences[:CHUNK_SENTENCES])
            for start in starts:
                tokens = waiting.result()
                after = start + CHUNK_SENTENCES
                waiting = ahead.submit(tokenise, self._tokenizer, sentences[after : after + CHUNK_SENTENCES])
                yield start, tokens

    def probabilities(self, sentences: Sequence[str]) -> NDArray[np.float64]:
        """Return the probability of each label, [N, 2], in input order."""
        logits = self.logits(sentences).astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, sentences: Sequence[str]) -> list[Prediction]:
        """Judge sentences, in input order.

        Raises:
            VerdictError: if an item is no string.
        """
        for item in sentences:
            if not isinstance(item, str):
                raise VerdictError(f"sentence {item!r} is a {type(item).__name__}; expected strings")
        probabilities = self.probabilities(sentences)
        best = probabilities.argmax(axis=1)
        return [
            Prediction(sentence=text, label=self.manifest["labels"][label], probability=float(row[label]))
            for text, label, row in zip(sentences, best, probabilities, strict=True)
        ]
