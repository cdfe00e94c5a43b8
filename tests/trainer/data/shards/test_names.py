"""Addresses of shards: what a server answers, whatever it is, is a sentence, and no password is in it."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepladder.trainer.data.errors import DataError
from stepladder.trainer.data.shards.names import local_shards, missing, shown

ANSWERS = {
    "/words.tar": b"HTTP/1.0 200 OK\r\nContent-Length: abc\r\n\r\nxx",
    "/less.tar": b"HTTP/1.0 200 OK\r\nContent-Length: -5\r\n\r\nxx",
    "/short.tar": b"HTTP/1.0 200 OK\r\nContent-Length: 50\r\n\r\nxx",
    "/chunk.tar": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nabc",
    "/chunks.tar": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    "/status.tar": b"\x1b[31mGARBAGE\r\n\r\n",
    "/none.tar": b"HTTP/1.0 404 \x1b[31mno\r\n\r\n",
    "/silent.tar": b"",
    "/elsewhere.tar": b"HTTP/1.0 302 no\r\nLocation: file:///etc/hostname\r\n\r\n",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                taken, _ = listening.accept()
            except OSError:
                return
            with taken:
                path = taken.recv(4096).split(b" ")[1].decode().partition("?")[0]
                taken.sendall(ANSWERS[path])

    threading.Thread(target=answer, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


@pytest.mark.parametrize("path", ANSWERS)
def test_an_answer_that_is_no_shard_is_a_sentence_and_leaves_nothing(path: str, server: str, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(DataError, match="by hand") as caught:
        local_shards([f"{server}{path}?token=hunter2"], tmp_path, told.append)
    assert f"{server}{path}" in str(caught.value)
    for each in (*told, str(caught.value)):
        assert each.isprintable()
        assert "hunter2" not in each
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://bob:hunter2@host/a.tar", "holds a user or a password"),
        ("https://hunter2@host/a-{0..3}.tar", "holds a user or a password"),
        ("https://bob:hun/ter2@host/a.tar", "is no address"),
        ("http://host/a b.tar", "write it as %XX"),
        ("http://host/é.tar", "write it as %XX"),
        ("http://host/a\n.tar", "write it as %XX"),
        ("http:///a.tar", "names no host"),
        ("http://[a/a.tar", "is no address"),
        ("http://host:99999999/a.tar", "is no address"),
        ("http://a..b/a.tar", "is no address"),
    ],
)
def test_an_address_that_cannot_be_asked_for_is_refused_before_and_without_its_password(
    address: str, why: str, tmp_path: Path
) -> None:
    (sentence,) = missing([address])
    with pytest.raises(DataError, match=why) as caught:
        local_shards([address], tmp_path)
    for each in (sentence, str(caught.value)):
        assert why in each
        assert not any(part in each for part in ("hunter2", "hun/", "ter2", "bob"))


def test_what_is_shown_of_a_path() -> None:
    assert shown("a@b?c.tar") == "a@b?c.tar"
    assert shown("http://host/a.tar") == "http://host/a.tar"
    assert shown("http://u:p@ss/w@host/a.tar?x=y") == "http://...@host/a.tar?..."
