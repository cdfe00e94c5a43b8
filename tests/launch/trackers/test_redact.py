"""What is hidden of a run before it is shown elsewhere: secrets by name, shape and place, and nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepladder.launch.recipe import read, resolved
from stepladder.launch.trackers.redact import HIDDEN, redacted


def test_secrets_and_homes_are_hidden_and_nothing_else_is() -> None:
    tree = {
        "recipe": {"batch": {"tokens_per_step": 4096}, "data": {"paths": ["/home/ada/data/*.txt", "/data/x"]}},
        "api_key": "short",
        "hub_token": "t",
        "wandb": {"password": "p", "key": None},
        "url": "https://ada:pass@example.org/a?part=1&X-Amz-Signature=abc&b=2",
        "command": ["stepladder", "run", "--token", "abcdef", "--set", "data.hub.token=xyz", "/Users/ada/r.toml"],
        "text": "hf_abcdefghijklmnopqrst and verysecretvalue in /root/x, not /rootless",
    }
    found = redacted(tree, {"MY_API_TOKEN": "verysecretvalue", "HOME": "/srv/ada", "PATH": "/usr/bin:/bin"})
    assert found["recipe"] == {"batch": {"tokens_per_step": 4096}, "data": {"paths": ["~/data/*.txt", "/data/x"]}}
    assert (found["api_key"], found["hub_token"]) == (HIDDEN, HIDDEN)
    assert found["wandb"] == {"password": HIDDEN, "key": None}
    assert found["url"] == f"https://{HIDDEN}@example.org/a?part=1&X-Amz-Signature={HIDDEN}&b=2"
    assert found["command"] == ["stepladder", "run", "--token", HIDDEN, "--set", f"data.hub.token={HIDDEN}", "~/r.toml"]
    assert found["text"] == f"{HIDDEN} and {HIDDEN} in ~/x, not /rootless"


SECRET_TEXTS = [
    "https://user:p@ss/w0rdSEEN@host/x",
    "https://user:pa/ssSEEN@host/x",
    "s3://AKIAIOSFODNN7EXAMPLE:wJalrSEEN/K7MDENG/bPx@bucket/x",
    "https://h/x?pass=SEEN&pwd=SEEN",
    "--api-key=SEEN",
    "--set trackers.x.privateKey=SEEN",
    "--set=x.api_keys=['SEEN', 'SEEN']",
    "Authorization: Basic U0VFSEEN=",
    "X-Api-Key: SEEN",
    "-----BEGIN RSA PRIVATE KEY-----\nSEEN\nSEEN\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nSEEN",
    "https://hooks.slack.com/services/T000/B000/SEEN",
    "https://discord.com/api/webhooks/12/SEEN",
    "wandb_v1_SEEN0123456789abcdef",
]
SECRET_NAMES = [
    "privateKey",
    "accessToken",
    "dbPassword",
    "DBPassword",
    "APIKey",
    "passwords",
    "api_keys",
    "secrets",
    "tokens",
    "client_secret_value",
    "pass",
    "dbpassword",
    "accesskey",
    "Set-Cookie",
]


@pytest.mark.parametrize("text", SECRET_TEXTS)
def test_a_secret_in_a_text_is_hidden(text: str) -> None:
    assert "SEEN" not in str(redacted({"text": text, "command": ["run", text]}, {}))


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_secret_is_known_by_its_name_alone_or_in_a_list_or_a_table_of_secrets(name: str) -> None:
    found = redacted({"a": {name: "SEEN"}, "b": {name: ["SEEN"]}, "secrets": {"mine": "SEEN"}}, {})
    assert found == {"a": {name: HIDDEN}, "b": {name: HIDDEN}, "secrets": {"mine": HIDDEN}}
    assert redacted({"text": "is verysecret"}, {name: "verysecret"}) == {"text": f"is {HIDDEN}"}


def test_what_only_looks_like_a_secret_is_kept() -> None:
    tree = {
        "tokens_per_step": 4096,
        "num_tokens": 12345678,
        "data": {"tokens": {"path": "x"}},
        "monkey": "ape",
        "tokenizer": "byte",
        "text": "num_tokens = 12345678 of https://host:8080/a@b and https://host/a@b: a basic tokenizer, keys: 3",
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567"},
        "command": ["run", "--tokens", "512", "--set", "batch.microbatch_size=4"],
    }
    assert redacted(tree, {"MAX_TOKENS": "12345678"}) == tree


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=10,
    )
)
def test_redaction_takes_any_value_and_twice_is_once(value: Any) -> None:
    once = redacted({"value": value}, {"A_TOKEN": "12345678"})
    assert redacted(once, {"A_TOKEN": "12345678"}) == once


def test_a_shipped_recipe_keeps_all_its_values() -> None:
    tree = resolved(read("demo"))
    assert redacted({"recipe": tree}, {})["recipe"] == json.loads(json.dumps(tree))
