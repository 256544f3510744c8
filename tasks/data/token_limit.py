"""The longest input that an encoder reads, in tokens: its positions, where these are fewer than the setting allows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.core.errors import UsageError

# Model types that count positions from behind that of the padding token, as fairseq does: the first ones are unused.
COUNTED_FROM_PADDING = (
    *("camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
POSITION_KEYS = ("max_position_embeddings", "n_positions")  # of config.json
MIN_POSITIONS = 8  # a short sentence and the special tokens around it


def longest_input(folder: str, max_length: int) -> int:
    """Return the tokens of the longest input, special ones included.

    Args:
        folder: of the encoder.
        max_length: the setting finetune.max_length.

    Raises:
        UsageError: if the encoder has positions for fewer than `MIN_POSITIONS` tokens.
    """
    positions = usable_positions(folder)
    if positions is None:
        return max_length
    if positions < MIN_POSITIONS:
        raise UsageError(
            f"encoder {folder!r} has positions for {positions} tokens of a sentence (config.json: "
            f"max_position_embeddings or n_positions); expected at least {MIN_POSITIONS}: another encoder, or the "
            "config.json that belongs to its weights: --encoder DIR|HUB_ID"
        )
    return min(max_length, positions)


def usable_positions(folder: str) -> int | None:
    """Return the number of tokens that an encoder has positions for; None where its config.json does not limit them."""
    path = Path(folder) / "config.json"
    return count_positions(json.loads(path.read_bytes())) if path.is_file() else None


def count_positions(config: Mapping[str, Any]) -> int | None:
    """Return the number of tokens that a configuration has positions for; None where nothing limits it."""
    positions = next((config[key] for key in POSITION_KEYS if isinstance(config.get(key), int)), 0)
    if positions <= 0:
        return None
    if config.get("model_type") in COUNTED_FROM_PADDING:
        # MPNet's embeddings take 1 whatever the configuration says.
        padding = 1 if config["model_type"] == "mpnet" else config.get("pad_token_id", 1)
        positions -= (1 if padding is None else padding) + 1
    return max(positions, 0)
