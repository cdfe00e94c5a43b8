"""What leaves the machine about a run, without what is nobody's business: keys, tokens, passwords, home folders."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

HIDDEN = "(hidden)"
_SECRET_NAME = re.compile(
    r"(^|[_.-])(api_?key|key|token|secret|password|passwd|pwd|passphrase|credentials?|auth|authorization|cookie)$",
    re.IGNORECASE,
)
"""Of a key, by its last word: `api_key` is one, `tokens_per_step` is none."""
_SECRET_SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"
    r"|(?<=[Bb]earer )\S+"
)
"""Tokens of well-known services, wherever they stand."""
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_IN_QUERY = re.compile(r"(?i)([?&;](?:[\w-]*(?:key|token|secret|signature|password|credential)|sig|auth)=)[^&;#\s'\"]+")
_IN_OPTION = re.compile(r"(?i)((?:^|[\s.,_-])(?:api_?key|token|secret|password|passwd)\s*[=:]\s*)[^\s,;]+")
_HOMES = re.compile(
    r"(?<![\w/.])(?:/home/[^/\s:'\",]+|/Users/[^/\s:'\",]+|/root(?=[/\s:'\",]|$))|[A-Za-z]:\\Users\\[^\\\s]+"
)
_SHORTEST_SECRET = 8


def redacted(tree: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """A copy of a nest of tables without secrets and home folders; values of secret variables are known by sight."""
    known = {
        value
        for name, value in environment.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET and not value.startswith("/")
    }
    homes = {str(Path.home()), environment.get("HOME", "")} - {"", "/"}
    return {str(key): _value(str(key), value, known, homes) for key, value in tree.items()}


def _value(key: str, value: Any, known: set[str], homes: set[str]) -> Any:
    if isinstance(value, Mapping):
        table = cast(Mapping[Any, Any], value)
        return {str(name): _value(str(name), each, known, homes) for name, each in table.items()}
    if value is not None and not isinstance(value, bool) and _SECRET_NAME.search(key):
        return HIDDEN
    if isinstance(value, list | tuple):
        return _words([_value("", each, known, homes) for each in cast(Sequence[Any], value)])
    return _text(value, known, homes) if isinstance(value, str) else value


def _words(values: list[Any]) -> list[Any]:
    """A command line whose option for a secret stands before the secret itself."""
    before = ["", *values][: len(values)]
    return [
        HIDDEN if isinstance(option, str) and option.startswith("-") and _SECRET_NAME.search(option) else value
        for option, value in zip(before, values, strict=True)
    ]


def _text(text: str, known: set[str], homes: set[str]) -> str:
    for secret in known:
        text = text.replace(secret, HIDDEN)
    text = _SECRET_SHAPES.sub(HIDDEN, text)
    text = _IN_ADDRESS.sub(HIDDEN, text)
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", text)
    text = _IN_OPTION.sub(rf"\1{HIDDEN}", text)
    for home in homes:
        text = re.sub(rf"(?<![\w/.]){re.escape(home)}(?=[/\s:'\",]|$)", "~", text)
    return _HOMES.sub("~", text)
