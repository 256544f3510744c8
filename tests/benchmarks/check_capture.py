"""Checks on a GPU what CI cannot: captured and eager training give the same losses, and the kernel is AdamW.

    python tests/benchmarks/check_capture.py --out FILE

Tiny models of each architecture, without dropout, on random sentences: both steps train on the same batches from
the same weights. Differences come from bf16 rounding; the table shows the largest one beside the loss it is of. Then
one training with all memory, and one that is given less than it needs: batches are split into micro-batches.
"""

import argparse
import gc
import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tasks.inference.tokenization import shuffled_batches
from tasks.training.cuda_graph_step import make_train_step
from tasks.training.cuda_graphs import cudnn_attention_disabled
from tasks.training.dataset import TokenDataset
from tasks.training.train_step import EagerStep, StepConfig

SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS: dict[str, Any] = {
    "bert": transformers.BertConfig(**SHAPE, **QUIET),
    "electra": transformers.ElectraConfig(**SHAPE, **QUIET, embedding_size=128),
    "roberta": transformers.RobertaConfig(**SHAPE, **QUIET, pad_token_id=0),
    "mpnet": transformers.MPNetConfig(**SHAPE, **QUIET, pad_token_id=0),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=1000,
        dim=128,
        n_layers=2,
        n_heads=4,
        hidden_dim=256,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
    ),
    "deberta-v2": transformers.DebertaV2Config(**SHAPE, **QUIET),
    "modernbert": transformers.ModernBertConfig(
        **SHAPE, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
    ),
}
ROWS, BATCH, EPOCHS = 500, 32, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    answers = {"kernel": compare_optimizers()} | {name: compare(config) for name, config in CONFIGS.items()}
    answers["memory"] = compare_memory()
    text = json.dumps(answers, indent=2)
    print(text)
    if options.out:
        Path(options.out).write_text(text + "\n")


@cudnn_attention_disabled()
def compare(config: Any) -> dict[str, Any]:
    """Train one architecture both ways and compare the losses."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 1000, rng.integers(4, 40)) for _ in range(ROWS)]
    labels = np.array([int(row.sum() % 2) for row in ids])
    batches = [shuffled_batches(np.array([len(row) for row in ids]), BATCH, rng) for _ in range(EPOCHS)]
    recipe = StepConfig(sum(map(len, batches)), BATCH, 1e-3, 0.1, 0.01, 1.0, 0.9, precision="bf16")
    torch.manual_seed(0)
    weights = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).state_dict()
    losses = {}
    for name in ("eager", "captured"):
        model = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        model.load_state_dict(weights)
        data = TokenDataset([row.astype(np.int64) for row in ids], labels, 0, "cuda")
        try:
            step = (
                EagerStep(model.cuda(), data, recipe)
                if name == "eager"
                else make_train_step(model.cuda(), data, recipe)
            )
            passed = [step.run(part, i * len(batches[0]), lambda: None) for i, part in enumerate(batches)]
        except Exception as error:
            return {
                "error": f"{name}: {type(error).__name__}: {str(error)[:300]}",
                "where": traceback.format_exc()[-900:],
            }
        losses[name] = torch.cat([part.losses for part in passed]).cpu().numpy()
    gap = np.abs(losses["eager"] - losses["captured"])
    return {
        "steps": len(gap),
        "step": type(step).__name__,
        "fused": sorted(
            {type(module).__name__ for module in model.modules() if type(module).__name__.startswith("Fused")}
        ),
        "attention": model.config._attn_implementation,
        "first_loss": [float(losses[name][0]) for name in losses],
        "last_loss": [float(losses[name][-1]) for name in losses],
        "mean_gap": float(gap.mean()),
        "largest_gap": float(gap.max()),
    }


@cudnn_attention_disabled()
def compare_memory() -> dict[str, Any]:
    """Train with all memory and with 0.6 of what that took; compare the losses."""
    wide = SHAPE | {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048}
    config = transformers.BertConfig(**wide, **QUIET)
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 1000, 64) for _ in range(2048)]
    labels = np.array([int(row.sum() % 2) for row in ids])
    batches = shuffled_batches(np.full(len(ids), 64), 512, rng)
    total = torch.cuda.get_device_properties(0).total_memory
    losses: list[Any] = []
    answer: dict[str, Any] = {}
    for kind in ("whole", "limited"):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if kind == "limited":
            torch.cuda.set_per_process_memory_fraction(0.6 * answer["whole_bytes"] / total)
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).cuda()
        data = TokenDataset([row.astype(np.int64) for row in ids], labels, 0, "cuda")
        try:
            recipe = StepConfig(len(batches), 512, 1e-3, 0.1, 0.01, 1.0, precision="bf16")
            step: Any = make_train_step(model, data, recipe)
            losses.append(step.run(batches, 0, lambda: None).losses.cpu().numpy())
        except Exception as error:
            return answer | {"error": f"{kind}: {type(error).__name__}: {str(error)[:300]}"}
        answer |= {
            f"{kind}_bytes": torch.cuda.max_memory_reserved(),
            f"{kind}_stepper": type(step).__name__,
            f"{kind}_micro_batches": step.micro_batches,
        }
        del model, data, step
    torch.cuda.set_per_process_memory_fraction(1.0)
    return answer | {"largest_gap": float(np.abs(losses[0] - losses[1]).max()), "last_loss": float(losses[0][-1])}


def compare_optimizers() -> dict[str, float]:
    """Apply the kernel and torch's AdamW to the same gradients in fp32; return the largest difference of a weight."""
    from tasks.training import triton_kernels
    from tasks.training.adamw import TritonAdamW
    from tasks.training.flat_parameters import FlatParameters

    def layers() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.LayerNorm(200)).cuda()

    ours, theirs = layers(), layers()
    flat = FlatParameters(ours, 0.1, 1.0, torch.float32)
    kernel = TritonAdamW(flat, 1.0, triton_kernels)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, fused=True)
    for _ in range(50):
        x = torch.randn(16, 300, device="cuda")
        for model in (ours, theirs):
            model(x).square().sum().backward()
        kernel.step(torch.tensor(1e-2, device="cuda"))
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    gaps = [(a - b).abs().max().item() for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]
    return {"largest_gap": max(gaps)}


if __name__ == "__main__":
    main()
