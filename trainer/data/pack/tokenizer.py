"""Tokenizers: bytes, a file of the `tokenizers` library, or one that is trained on the data."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ....profiling.capture import publish
from ..errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.uint32]

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
"""What tokenizers call the end of a document, the usual names first."""
TRAINED_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SLICE_CHARACTERS = 1 << 20
"""Longer documents are encoded in slices, cut behind a line: the library holds some 100 bytes for each character."""


class Tokenizer(Protocol):
    """Texts to ids and back."""

    @property
    def name(self) -> str:
        """`bytes`, or the file that it came from."""
        ...

    @property
    def num_ids(self) -> int:
        """Ids run from 0 to one less."""
        ...

    @property
    def end_id(self) -> int:
        """Stands behind each document."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for equal ids."""
        ...

    def encode(self, texts: "Sequence[str | bytes]") -> "list[Ids]":
        """Ids of each text; what looks like a special token in it is text."""
        ...

    def encode_template(self, text: str) -> "Ids":
        """Ids of a text of our own, whose special tokens are meant."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        ...


@dataclass(frozen=True)
class Bytes:
    """Every byte is a token; 0, which hardly any text contains, ends a document."""

    name: str = "bytes"
    num_ids: int = 256
    end_id: int = 0
    fingerprint: str = "bytes"

    def encode(self, texts: "Sequence[str | bytes]") -> "list[Ids]":
        """UTF-8."""
        import numpy as np

        raw = (text.encode() if isinstance(text, str) else text for text in texts)
        return [np.frombuffer(each, dtype=np.uint8).astype(np.uint32) for each in raw]

    def encode_template(self, text: str) -> "Ids":
        """Bytes know no special tokens: their names are spelled."""
        return self.encode([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes that are no UTF-8 become U+FFFD."""
        return bytes(ids).decode(errors="replace")


class FromFile:
    """A `tokenizer.json` as Hugging Face writes it."""

    def __init__(self, path: Path, end_token: str | None = None) -> None:
        """Read it; the end token left out is the first of the usual names that it knows. Raises: DataError."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        self.name = str(path)
        self._raw = raw
        self._plain = _loaded(path, raw)
        self._plain.encode_special_tokens = True  # a text that mentions a special token must not end a document
        self.num_ids = 1 + max(self._plain.get_vocab(with_added_tokens=True).values(), default=-1)
        self.end_id = self._end(path, END_TOKENS if end_token is None else (end_token,))
        self.fingerprint = hashlib.sha256(raw + f" {self.end_id}".encode()).hexdigest()[:16]

    def _end(self, path: Path, names: Sequence[str]) -> int:
        for name in names:
            found = self._plain.token_to_id(name)
            if found is not None:
                return found
        raise DataError(f"{path}: knows none of {', '.join(names)}; say with --end-token what stands behind a document")

    @cached_property
    def _special(self) -> Any:
        """The same, for texts of our own: few packings need it."""
        return _loaded(Path(self.name), self._raw)

    def encode(self, texts: "Sequence[str | bytes]") -> "list[Ids]":
        """All in one call, without the offsets that nobody asks for."""
        import numpy as np

        strings = [text if isinstance(text, str) else text.decode(errors="replace") for text in texts]
        slices = [list(sliced(text)) for text in strings]
        flat = [each for some in slices for each in some]
        coded = iter(self._plain.encode_batch_fast(flat, add_special_tokens=False))
        ids = [[np.array(next(coded).ids, dtype=np.uint32) for _ in some] for some in slices]
        return [some[0] if len(some) == 1 else np.concatenate(some) for some in ids]

    def encode_template(self, text: str) -> "Ids":
        """Special tokens by their names."""
        import numpy as np

        return np.array(self._special.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        """As the library has it."""
        return self._plain.decode(list(ids), skip_special_tokens=False)


def _loaded(path: Path, raw: bytes) -> Any:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise DataError("the `tokenizers` library is not installed; pip install 'stepladder[data]'") from error
    try:
        library: Any = Library.from_buffer(raw)
    except Exception as error:  # the library raises plain Exception for whatever is wrong
        first_line = (str(error).splitlines() or ["damaged"])[0]
        raise DataError(f"{path}: no tokenizer ({first_line}); give a tokenizer.json") from error
    library.no_truncation()
    library.no_padding()
    return library


def sliced(text: str) -> Iterator[str]:
    """The text, in slices behind whose last line a longer one was cut."""
    at = 0
    while len(text) - at > _SLICE_CHARACTERS:
        cut = text.rfind("\n", at, at + _SLICE_CHARACTERS) + 1 or at + _SLICE_CHARACTERS
        yield text[at:cut]
        at = cut
    yield text[at:]


def open_tokenizer(named: str, end_token: str | None = None) -> "Tokenizer":
    """`bytes`, a `tokenizer.json`, or a folder with one in it. Raises: DataError."""
    if named == "bytes":
        return Bytes()
    path = Path(named)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"tokenizer {named!r}: no such file; give a tokenizer.json, 'bytes', or train:VOCAB to pack")
    return FromFile(path.resolve(), end_token)


def vocabulary_to_train(named: str) -> int | None:
    """V of `train:V`; None if the tokenizer exists already. Raises: DataError."""
    kind, colon, size = named.partition(":")
    if kind != "train" or not colon:
        return None
    least = 256 + len(TRAINED_TOKENS)
    if not size.isdecimal() or int(size) < least:
        raise DataError(f"tokenizer {named!r}: write train:VOCAB with at least {least} ids, as train:8000")
    return int(size)


def train(texts: Iterable[str], num_ids: int, path: Path) -> None:
    """Learn a byte-level BPE and write its `tokenizer.json`; the same texts give the same file.

    Source: Sennrich et al. 2016, arXiv:1508.07909; over bytes: Radford et al. 2019 (GPT-2), section 2.2.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made: Any = Library(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_ids,
        special_tokens=list(TRAINED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((part for text in texts for part in sliced(text)), trainer)
    publish(path, lambda partial: made.save(str(partial)))


def one_thread() -> None:
    """Let the library keep to the process's own thread: there is a process for each core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
