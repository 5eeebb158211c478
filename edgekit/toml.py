"""Plain values as the text of a TOML file; `tomllib` reads it back."""

import json
import re
from collections.abc import Mapping
from typing import Any

BARE = re.compile(r"[A-Za-z0-9_-]+")


def dumps(value: Mapping[str, Any]) -> str:
    """The text: a table for each mapping, ``[[...]]`` for each list of mappings, all else on lines of its own."""
    return "\n".join(_table(value, "")).lstrip("\n") + "\n"


def _table(value: Mapping[str, Any], path: str) -> list[str]:
    lines = [f"{_key(key)} = {_inline(one)}" for key, one in value.items() if not _is_table(one)]
    for key, one in value.items():
        if not _is_table(one):
            continue
        name = f"{path}{_key(key)}"
        head = f"[{name}]" if isinstance(one, Mapping) else f"[[{name}]]"
        for part in [one] if isinstance(one, Mapping) else one:
            lines += ["", head, *_table(part, f"{name}.")]
    return lines


def _is_table(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(one, Mapping) for one in value)
    return isinstance(value, Mapping)


def _key(key: str) -> str:
    return key if BARE.fullmatch(key) else _string(key)


def _inline(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return _string(value) if isinstance(value, str) else json.dumps(value)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
