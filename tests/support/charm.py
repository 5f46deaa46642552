"""What ``testing.Context`` must know of the charm: metadata, options and actions.

Without their texts for people: at each simulated event ops writes all of it to a file and reads it again.
"""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def without_texts(document: Any) -> Any:
    """The same without summaries and descriptions."""
    if isinstance(document, dict):
        return {key: without_texts(value) for key, value in document.items() if key not in ("summary", "description")}
    return document


META, CONFIG, ACTIONS = (
    without_texts(yaml.safe_load((ROOT / name).read_text()))
    for name in ("metadata.yaml", "config.yaml", "actions.yaml")
)
