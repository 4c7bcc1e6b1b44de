"""Where the data is and what its prepared form is called: stdlib only, so the control plane can
ask.

A prepared split lies in a folder named by a hash of everything that decides its tokens: the content
of the data files, the tokenizer, the template and the options. A folder of that name which is
complete needs no preparation, and finding it needs no tokenizer.
"""

from launcher.fingerprint.base import (
    MARKER,
    note_base,
    origin,
    require_base,
    require_same,
    weights_digest,
)
from launcher.fingerprint.hashes import Hashes, file_digest
from launcher.fingerprint.keys import (
    CODE_VERSION,
    LAYOUT_VERSION,
    Part,
    complete_index,
    data_keys,
    is_prepared,
    lookup,
    objective_identity,
    parts,
    require_same_data,
)
from launcher.fingerprint.located import (
    SUFFIXES,
    BuiltinData,
    HubData,
    RemoteData,
    RemoteFile,
    Source,
    cache_root,
    locate,
    suffixes,
)

__all__ = [
    "CODE_VERSION",
    "LAYOUT_VERSION",
    "MARKER",
    "SUFFIXES",
    "BuiltinData",
    "Hashes",
    "HubData",
    "Part",
    "RemoteData",
    "RemoteFile",
    "Source",
    "cache_root",
    "complete_index",
    "data_keys",
    "file_digest",
    "is_prepared",
    "locate",
    "lookup",
    "note_base",
    "objective_identity",
    "origin",
    "parts",
    "require_base",
    "require_same",
    "require_same_data",
    "suffixes",
    "weights_digest",
]
