"""One tiny configuration of each encoder architecture that the tests train and export."""

from functools import cache
from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from tasks.export.torch_export import ExportedGraphs, choose_exporter
from tasks.export.torch_reference import LogitsModule

SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
DISENTANGLED: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
# As in the published models; how many buckets there are is added.
DEBERTA_V3 = DISENTANGLED | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
ARCHITECTURES = {
    # The writer has no description of it.
    "albert": AlbertConfig(**SIZES, embedding_size=16, max_position_embeddings=80),
    "minilm": BertConfig(
        **SIZES | {"hidden_size": 24, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 96},
        max_position_embeddings=80,
    ),
    "bert": BertConfig(**SIZES, max_position_embeddings=80),
    "electra": ElectraConfig(**SIZES, embedding_size=16, max_position_embeddings=80),
    "roberta": RobertaConfig(**SIZES, max_position_embeddings=80, pad_token_id=0),
    "mpnet": MPNetConfig(**SIZES, max_position_embeddings=80, pad_token_id=0),
    "distilbert": DistilBertConfig(
        vocab_size=20, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=80
    ),
    # Fewer buckets than tokens of the compared sentences.
    "deberta-v2": DebertaV2Config(
        **SIZES, **DEBERTA_V3, max_position_embeddings=80, initializer_range=0.2, position_buckets=8
    ),
    "modernbert": ModernBertConfig(
        **SIZES | {"num_hidden_layers": 2},
        **SPECIAL_IDS,
        max_position_embeddings=80,
        initializer_range=0.2,
        local_attention=8,
        global_attn_every_n_layers=2,
    ),
}


def random_model(config: PreTrainedConfig) -> LogitsModule:
    """Return an untrained classifier whose weights and biases are large enough that a wrong graph shows."""
    torch.manual_seed(0)
    config.initializer_range = 0.2
    logits = LogitsModule(AutoModelForSequenceClassification.from_config(config, attn_implementation="eager"))
    for name, parameter in logits.named_parameters():
        if name.endswith("bias"):  # zero by default, which would hide a lost one
            torch.nn.init.normal_(parameter, std=0.2)
    return logits


@cache
def export_once(name: str) -> tuple[LogitsModule, ExportedGraphs, list[str]]:
    """Return an architecture's model, its export by torch and the remarks; every test of a process shares them."""
    logits = random_model(ARCHITECTURES[name])
    return logits, *choose_exporter(logits)
