"""Sizes that bound the memory of reading."""

#: Bytes of lines, and number of parsed records, that one worker gets at a time.
CHUNK_BYTES = 1 << 18
CHUNK_RECORDS = 256
#: The longest line or text file; more than this is damage, or data that should be cut up first.
MAX_RECORD_BYTES = 64 << 20
#: A compressed file may give so many bytes, and beyond them this many times its own size.
MIN_UNPACKED_BYTES = 64 << 20
MAX_RATIO = 200
