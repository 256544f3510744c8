"""One tiny configuration of each encoder architecture that the tests train and export."""

import torch
from transformers import (
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

from tasks.export.parity import LogitsModule

SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ARCHITECTURES = {
    "bert": BertConfig(**SIZES, max_position_embeddings=80),
    "electra": ElectraConfig(**SIZES, embedding_size=16, max_position_embeddings=80),
    "roberta": RobertaConfig(**SIZES, max_position_embeddings=80, pad_token_id=0),
    "mpnet": MPNetConfig(**SIZES, max_position_embeddings=80, pad_token_id=0),
    "distilbert": DistilBertConfig(
        vocab_size=20, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=80
    ),
    # Distances in buckets, as the published v3 models have them; a window shorter than the sentences that are compared.
    "deberta-v2": DebertaV2Config(
        **SIZES,
        max_position_embeddings=80,
        initializer_range=0.2,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
    ),
    "modernbert": ModernBertConfig(
        **SIZES | {"num_hidden_layers": 2},
        max_position_embeddings=80,
        initializer_range=0.2,
        local_attention=8,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    ),
}


def random_model(config: PreTrainedConfig) -> LogitsModule:
    """Return an untrained classifier whose weights are large enough that a wrong graph shows."""
    torch.manual_seed(0)
    config.initializer_range = 0.2
    return LogitsModule(AutoModelForSequenceClassification.from_config(config, attn_implementation="eager"))
