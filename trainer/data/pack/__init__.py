"""Text into token files, once: read in pieces, tokenise in parallel, and leave a folder that can be memory-mapped.

`sources` finds pieces, `documents` reads them, `tokenizer` and `chat` make ids of them in `parts`, `job` runs all that
in processes that may be killed, `assemble` puts the parts together, `folder` is what stays, `best_fit` plans which
documents share a sample. Nothing here imports torch.
"""
