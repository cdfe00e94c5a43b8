"""A conversation as ids: what stands around each message is the template's, and only the assistant's words count."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .documents import Document
    from .tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Template:
    """What stands before and after each message, its special tokens by name. The default is ChatML."""

    before: str = "<|im_start|>{role}\n"
    after: str = "<|im_end|>\n"

    def encode(self, document: "Document", tokenizer: "Tokenizer") -> "tuple[NDArray[np.uint32], NDArray[np.uint8]]":
        """Ids of the conversation, and 1 for each that is to be learnt: the assistant's content and what ends it."""
        import numpy as np

        contents = tokenizer.encode([content for _, content in document.messages])
        after = tokenizer.encode_template(self.after)
        ids: list[NDArray[np.uint32]] = []
        counts: list[NDArray[np.uint8]] = []
        for (role, _), content in zip(document.messages, contents, strict=True):
            before = tokenizer.encode_template(self.before.replace("{role}", role))
            ids += [before, content, after]
            counts += [np.zeros(len(before), np.uint8)]
            counts += [np.full(len(content) + len(after), role == "assistant", np.uint8)]
        return np.concatenate(ids), np.concatenate(counts)
