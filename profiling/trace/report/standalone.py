"""One HTML file out of data, scripts and a style sheet, that needs nothing but a browser, and no network.

[Note: a page that nobody can write into]
Names come from a file that may be anybody's. They reach the page as JSON in a block that no browser runs, in which the
characters of HTML are escaped; the script makes text nodes of them, and the page's policy takes every other way from
it: one style sheet and one script by their hashes, no attribute with code, no text as markup (trusted types), no
address.
"""

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from .payload import json_text

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def standalone(title: str, *, style: str, scripts: Sequence[str], data: Mapping[str, Any]) -> str:
    """The text of the page. data: what its scripts find in the element `data`, as JSON without NaN.

    Raises: ValueError for a number that is not finite.
    """
    script = '"use strict";\n(() => {\n' + "\n".join(scripts) + "\n})();\n"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    slots = {"policy": policy, "title": html.escape(title), "style": style, "script": script, "data": json_text(data)}
    return _SLOT.sub(lambda slot: slots[slot[1]], shipped(__package__ or "", "page.html"))


def shipped(package: str, name: str) -> str:
    """The text of a file that comes with a package."""
    return (files(package) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a content security policy names an inline text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
