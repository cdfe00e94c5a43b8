"""Our reader of tar headers finds what the standard library's finds, and never less without saying so."""

import contextlib
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_shards import tar_of

from stepladder.trainer.data.shards.tar import Member, TarDamageError, members

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def ours(raw: bytes) -> list[Member]:
    return list(members(lambda size, offset: raw[offset : offset + size], len(raw)))


def theirs(raw: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        return [Member(each.name, each.offset_data, each.size) for each in archive if each.isreg()]


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6), st.sampled_from(FORMATS[1:]))
def test_members_are_those_that_the_standard_library_finds(found: list[tuple[str, bytes]], format: int) -> None:
    raw = tar_of([("folder/" + name, content) for name, content in found], format=format)
    assert ours(raw) == theirs(raw)
    assert [raw[each.offset : each.offset + each.size] for each in ours(raw)] == [content for _, content in found]


@pytest.mark.parametrize("format", FORMATS)
def test_long_names_links_and_folders(format: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for kind, name in ((tarfile.DIRTYPE, "d"), (tarfile.SYMTYPE, "d/link"), (tarfile.LNKTYPE, "d/hard")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "d/" + "t" * 90
            archive.addfile(member)
        member = tarfile.TarInfo("d/" + "p" * 98 + "/" + "n" * 90 + ".jpg")
        member.size = 700
        archive.addfile(member, io.BytesIO(b"x" * 700))
    assert ours(out.getvalue()) == theirs(out.getvalue())
    assert len(ours(out.getvalue())) == 1


def test_every_cut_is_found_where_the_standard_library_keeps_silent() -> None:
    raw = tar_of([(f"{i}.txt", bytes([i]) * (300 * i)) for i in range(1, 5)])
    end = ours(raw)[-1].offset + 1200 + (-1200 % 512)  # of the last member's content
    silent = 0
    for length in range(0, end, 128):
        with pytest.raises(TarDamageError, match="truncated"):
            ours(raw[:length])
        with contextlib.suppress(tarfile.ReadError):
            silent += len(theirs(raw[:length])) < 4
    assert silent > 0
    assert len(ours(raw[: end + 512])) == 4


def test_a_header_with_a_flipped_bit_is_found() -> None:
    raw = bytearray(tar_of([("a.txt", b"1" * 600), ("b.txt", b"2")]))
    raw[1536 + 3] ^= 4
    with pytest.raises(TarDamageError, match="damaged at byte 1,536"):
        ours(bytes(raw))


def test_what_is_no_archive_says_what_it_is() -> None:
    import gzip

    with pytest.raises(TarDamageError, match=r"is no tar archive: it is compressed"):
        ours(gzip.compress(tar_of([("a.txt", bytes(range(256)) * 20)]), 0))
    with pytest.raises(TarDamageError, match="is no tar archive"):
        ours(b"words " * 200)


def test_headers_of_headers_are_bounded() -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 40
    raw = member.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(TarDamageError, match="which no name needs"):
        list(members(lambda size, offset: raw[offset : offset + size], 1 << 50))


def header(size: bytes, kind: bytes = b"0", checksum: bytes = b"%06o\0 ") -> bytes:
    raw = bytearray(512)
    raw[:5], raw[124 : 124 + len(size)], raw[156:157], raw[257:265] = b"a.jpg", size, kind, b"ustar\x0000"
    raw[148:156] = b" " * 8
    raw[148:156] = (checksum % sum(raw)).ljust(8, b"\0")
    return bytes(raw)


@pytest.mark.parametrize("size", [b"-0000001000\0", b"+0000000001\0", b"0000000_000\0", b"0o000000000\0", b"0 0\0"])
def test_a_size_that_is_not_octal_digits_alone_is_damage(size: bytes) -> None:
    with pytest.raises(TarDamageError, match="is damaged: the member at byte 0 has no readable size"):
        ours(header(size) + bytes(1024))


def test_a_checksum_with_a_sign_is_damage() -> None:
    assert [each.name for each in ours(header(b"0") + bytes(1024))] == ["a.jpg"]
    with pytest.raises(TarDamageError, match="is no tar archive"):
        ours(header(b"0", checksum=b"+%06o\0") + bytes(1024))


@pytest.mark.parametrize("size", ["²", "9" * 5000, "-5", "1_0", "٣", " 1"])
def test_an_extended_size_that_is_no_number_of_a_file_is_damage(size: str) -> None:
    record = f" size={size}\n".encode()
    length = next(each for each in range(len(record), len(record) + 9) if each == len(record) + len(str(each)))
    extended = str(length).encode() + record
    padded = extended + bytes(-len(extended) % 512)
    with pytest.raises(TarDamageError, match=r"is damaged: the member at byte .* has no readable size"):
        ours(header(b"%011o" % len(extended), b"x") + padded + header(b"0") + bytes(1024))
