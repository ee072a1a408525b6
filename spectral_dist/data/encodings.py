"""What a file that is not UTF-8 text looks like, for a message with a remedy.

A guess from its first bytes (compressed files, UTF-16) or from the bytes that are not UTF-8. Knows
nothing of readers or tokens. Read `looks_like`.
"""

from collections import Counter

# The first bytes of a file -> what it is, and how text is got out of it.
_SIGNATURES = {
    b"\x1f\x8b": "gzip: gzip -d unpacks it",
    b"\x28\xb5\x2f\xfd": "Zstandard: zstd -d unpacks it",
    b"BZh": "bzip2: bzip2 -d unpacks it",
    b"\xfd7zXZ\0": "xz: xz -d unpacks it",
    b"PK\x03\x04": "a zip archive or an office document: unzip it, or save it as text",
    b"PAR1": "Parquet: write its text column to a file first",
    b"%PDF": "a PDF: pdftotext writes its text",
    b"\xff\xfe": "UTF-16: iconv -f UTF-16 -t UTF-8 converts it",
    b"\xfe\xff": "UTF-16: iconv -f UTF-16 -t UTF-8 converts it",
}
# The six letters that Windows-1254 and ISO 8859-9 have for Turkish; Latin-1 has other ones there.
_TURKISH = frozenset("ğĞıİşŞ".encode("cp1254"))


def looks_like(sample: bytes) -> str:
    """Return what a sample of a file looks like and how to convert it; "" if nothing is known.

    Args:
      sample: the beginning of the file, or any part of it that holds invalid UTF-8.
    """
    for signature, meaning in _SIGNATURES.items():
        if sample.startswith(signature):
            return meaning
    nul_bytes = sample.count(0)
    # Latin letters in UTF-16 without a mark at the start: every second byte is NUL.
    for start, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if nul_bytes > len(sample) / 4 and sample[start::2].count(0) > 0.9 * nul_bytes:
            return f"{name}: iconv -f {name} -t UTF-8 converts it"
    invalid = _invalid_bytes(sample)
    count = sum(invalid.values())
    if not count or sum(n for byte, n in invalid.items() if byte < 0xA0) > count / 10:
        return ""  # the bytes below 0xA0 are no letters of the encodings below
    turkish = sum(n for byte, n in invalid.items() if byte in _TURKISH)
    name = "WINDOWS-1254" if turkish > count / 10 else "WINDOWS-1252"
    kind = "Turkish" if name == "WINDOWS-1254" else "Latin-1"
    if sum(not c.isascii() for c in sample.decode(errors="ignore")) > count:
        return f"UTF-8 with parts in {name} ({kind})"
    return f"{name} ({kind}): iconv -f {name} -t UTF-8 converts it"


def _invalid_bytes(sample: bytes) -> Counter[int]:
    """Count the bytes of a sample that belong to no UTF-8 character."""
    # Each becomes a lone surrogate, U+DC00 + byte, which valid UTF-8 never decodes to.
    text = sample.decode(errors="surrogateescape")
    return Counter(ord(c) - 0xDC00 for c in text if "\udc80" <= c <= "\udcff")
