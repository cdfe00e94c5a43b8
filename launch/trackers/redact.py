"""What leaves the machine about a run, without what is nobody's business: keys, tokens, passwords, home folders."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

HIDDEN = "(hidden)"
_SECRET_NAME = re.compile(
    r"(^|[_.-])(api_?key|[a-z]*(password|passwd|secret|passphrase)|(access|private|secret|auth|ssh)?(key|token)|pwd"
    r"|(^|db_?|user_?|proxy_?)pass|credential|auth|authorization|cookie)s?([_.-](value|text|string|base64))?$",
    re.IGNORECASE,
)
"""Of a key, by its last word: `api_key` is one, `tokens_per_step` is none."""
_SECRET_TABLE = re.compile(r"(^|[_.-])(api_?keys|secrets?|passwords?|credentials?)$", re.IGNORECASE)
"""Of a table that holds nothing but secrets, however they are called."""
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SECRET_SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"
    r"|wandb_v\d_\w{16,}|(?<=[Bb]earer )\S+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
"""Tokens of well-known services and private keys, wherever they stand."""
_IN_ADDRESS = re.compile(r"(?<=://)(?:[^/\s:@\[]*:(?!\d{1,5}/)[^\s'\"]*|[^/\s@]+)(?=@)")
"""User and password, which may hold `/` and `@` where nobody has quoted them; a port is no password."""
_IN_QUERY = re.compile(
    r"(?i)([?&;](?:[\w-]*(?:key|token|secret|signature|password|passwd|pass|pwd|passphrase|credential)s?|sig|auth)=)"
    r"[^&;#\s'\"]+"
)
_IN_OPTION = re.compile(
    r"((?:^|[\s.,_-]|(?<=[a-z])(?=[A-Z]))(?i:(?:api|access|private|secret)[_-]?keys?|token|(?:secret|password|passwd|pwd)s?)"
    r"\s*[=:]\s*)(?:\[[^\]]*\]|\"[^\"]*\"|'[^']*'|[^\s,;]+)"
)
_IN_HEADER = re.compile(r"(?i)((?:authorization|cookie)['\"]?\s*:\s*['\"]?)[^\r\n'\"]+")
_IN_HOOK = re.compile(
    r"(?i)(hooks\.slack\.com/(?:services|workflows|triggers)/|discord(?:app)?\.com/api/webhooks/)[^\s'\"]+"
)
_HOMES = re.compile(
    r"(?<![\w/.])(?:/home/[^/\s:'\",]+|/Users/[^/\s:'\",]+|/root(?=[/\s:'\",]|$))|[A-Za-z]:\\Users\\[^\\\s]+"
)
_SHORTEST_SECRET = 8


def redacted(tree: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """A copy of a nest of tables without secrets and home folders; values of secret variables are known by sight."""
    known = {
        value
        for name, value in environment.items()
        if _is_secret(name, value) and len(value) >= _SHORTEST_SECRET and not value.startswith("/")
    }
    homes = {str(Path.home()), environment.get("HOME", "")} - {"", "/"}
    return {str(key): _value(str(key), value, known, homes) for key, value in tree.items()}


def _value(key: str, value: Any, known: set[str], homes: set[str]) -> Any:
    if isinstance(value, Mapping):
        table = cast(Mapping[Any, Any], value)
        whole = bool(_SECRET_TABLE.search(_HUMP.sub("_", key)))
        return {str(name): _value(key if whole else str(name), each, known, homes) for name, each in table.items()}
    if value is not None and not isinstance(value, bool) and _is_secret(key, value):
        return HIDDEN
    if isinstance(value, list | tuple):
        return _words([_value("", each, known, homes) for each in cast(Sequence[Any], value)])
    return _text(value, known, homes) if isinstance(value, str) else value


def _is_secret(name: str, value: Any) -> bool:
    """Whether a value of this name is a secret; a number of tokens is none."""
    if name.lower().endswith("tokens") and (isinstance(value, int | float) or str(value).isdecimal()):
        return False
    return _SECRET_NAME.search(_HUMP.sub("_", name)) is not None


def _words(values: list[Any]) -> list[Any]:
    """A command line whose option for a secret stands before the secret itself."""
    before = ["", *values][: len(values)]
    return [
        HIDDEN if isinstance(option, str) and option.startswith("-") and _is_secret(option, value) else value
        for option, value in zip(before, values, strict=True)
    ]


def _text(text: str, known: set[str], homes: set[str]) -> str:
    for secret in known:
        text = text.replace(secret, HIDDEN)
    text = _SECRET_SHAPES.sub(HIDDEN, text)
    text = _IN_ADDRESS.sub(HIDDEN, text)
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", text)
    for place in (_IN_HEADER, _IN_HOOK, _IN_OPTION):
        text = place.sub(rf"\1{HIDDEN}", text)
    for home in homes:
        text = re.sub(rf"(?<![\w/.]){re.escape(home)}(?=[/\s:'\",]|$)", "~", text)
    return _HOMES.sub("~", text)
