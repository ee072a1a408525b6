"""What a file that is no UTF-8 looks like."""

import bz2
import gzip
import lzma

import pytest

from spectral_dist.data.encodings import looks_like

TURKISH = "Işığı görünce şaşırdı, ağaçların gölgesinde öğle uykusu çekti.\n" * 20
FRENCH = "Ça a été créé à Noël, où la fenêtre était ouverte: déjà vu.\n" * 20
ICELANDIC = "Það er gott að búa á Íslandi.\n" * 20


@pytest.mark.parametrize(
    ("sample", "wanted"),
    [
        (TURKISH.encode("cp1254"), "WINDOWS-1254 (Turkish): iconv -f WINDOWS-1254"),
        (TURKISH.encode("iso8859-9"), "WINDOWS-1254 (Turkish)"),
        (FRENCH.encode("latin-1"), "WINDOWS-1252 (Latin-1): iconv -f WINDOWS-1252"),
        (TURKISH.encode() + TURKISH[:200].encode("cp1254"), "UTF-8 with parts in WINDOWS-1254"),
        (TURKISH.encode("utf-16"), "UTF-16: iconv -f UTF-16 "),
        (b"\xfe\xff" + TURKISH.encode("utf-16-be"), "UTF-16: "),
        (TURKISH.encode("utf-16-le"), "UTF-16LE: iconv -f UTF-16LE"),
        (TURKISH.encode("utf-16-be"), "UTF-16BE: "),
        (gzip.compress(TURKISH.encode()), "gzip: "),
        (bz2.compress(TURKISH.encode()), "bzip2: "),
        (lzma.compress(TURKISH.encode()), "xz: "),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"PAR1\0\1", "Parquet: "),
    ],
)
def test_it_is_named(sample: bytes, wanted: str) -> None:
    assert looks_like(sample).startswith(wanted)


@pytest.mark.parametrize(
    "sample", [TURKISH.encode(), b"", b"plain", bytes(range(256)) * 8, TURKISH.encode()[:-1]]
)
def test_of_text_and_of_rubbish_nothing_is_said(sample: bytes) -> None:
    assert looks_like(sample) == ""
