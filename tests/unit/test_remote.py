"""Texts behind a URL: the same tokens as from a disk, built when they change, clear errors."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
import s3fs
from pyarrow import parquet

from spectral_dist.command_line import FAULT, Ending
from spectral_dist.data import remote
from spectral_dist.data.remote import Remote, fetched, find_remote, place_of, shown
from spectral_dist.data.tokens import TokenFile, prepare, prepare_share
from spectral_dist.settings import DatasetConfig

TEXT = "".join(f"belge {n}: ışığı görünce şaşırdı\n<|endoftext|>\n" for n in range(50)).encode()


def run(
    cache: Path, *paths: str, processes: int | None = 1, **others: str
) -> tuple[TokenFile, list[str]]:
    """Prepare one dataset of these paths; return it and the reported lines."""
    lines: list[str] = []
    (file,) = prepare(
        [DatasetConfig(name="d", paths=paths, **others)],
        validation_fraction=0.1,
        min_tokens=5,
        processes=processes,
        cache=str(cache),
        report=lines.append,
    )
    return file, lines


def write_all(folder: Path) -> None:
    """Write a folder of three formats and of files that are no data."""
    (folder / "sub").mkdir(parents=True)
    table = pa.table({"text": [f"belge {n}" for n in range(30)]})
    parquet.write_table(table, folder / "sub" / "c.parquet")
    lines = b"".join(b'{"text": "%d"}\n' % n for n in range(40))
    (folder / "b.jsonl.zst").write_bytes(pa.compress(lines, "zstd", asbytes=True))
    (folder / "a 1.txt").write_bytes(TEXT)
    (folder / "README.md").write_text("about\n")
    (folder / ".hidden.txt").write_text("about\n")


@pytest.fixture
def bucket(s3: str, tmp_path: Path) -> tuple[str, Path]:
    """A folder in a bucket and the same one on a disk."""
    write_all(folder := tmp_path / "data")
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    for path in folder.rglob("*"):
        if path.is_file():
            files.put_file(str(path), f"bucket/{tmp_path.name}/{path.relative_to(folder)}")
    return f"{s3}/{tmp_path.name}", folder


@pytest.mark.parametrize("processes", [1, 2])
def test_a_folder_of_a_bucket_is_the_same_tokens_as_on_a_disk(
    bucket: tuple[str, Path], tmp_path: Path, processes: int
) -> None:
    url, folder = bucket
    here, _ = run(tmp_path, str(folder))
    there, lines = run(tmp_path / "cache", url, processes=processes)
    assert bytes(there.tokens[:]) == bytes(here.tokens[:])
    assert (there.documents, there.sha256, there.split) == (120, here.sha256, here.split)
    assert lines[0] == f"{url}: 1 files are no data and are left out (README.md)"
    assert sorted(line.split(": ")[0] for line in lines[1:]) == [
        f"{url}/a 1.txt",
        f"{url}/b.jsonl.zst",
        f"{url}/sub/c.parquet",
    ]
    # Only tokens are left: the copies are gone.
    kept = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert {name for name in kept if not name.endswith(".lock")} == {
        *("a 1.bin", "a 1.bin.json", "b.jsonl.zst.bin", "b.jsonl.zst.bin.json"),
        *("c.parquet.bin", "c.parquet.bin.json"),
    }


def test_what_has_not_changed_is_not_read_again(bucket: tuple[str, Path], tmp_path: Path) -> None:
    url, _ = bucket
    first, _ = run(tmp_path / "cache", f"{url}/*.txt", f"{url}/sub/c.parquet")
    again, lines = run(tmp_path / "cache", f"{url}/*.txt", f"{url}/sub/c.parquet")
    assert (lines, again.sha256) == ([], first.sha256)
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    # As long as before: its version tells.
    files.pipe_file(f"{url.removeprefix('s3://')}/a 1.txt", TEXT.replace(b"belge", b"metin"))
    other, lines = run(tmp_path / "cache", f"{url}/*.txt", f"{url}/sub/c.parquet")
    assert lines[0] == f"{url}/a 1.txt: building a 1.bin again: the text has changed"
    assert len(lines) == 2
    assert bytes(other.tokens[:5]) == b"metin"


def test_a_slash_at_the_end_of_a_folder_means_nothing(
    bucket: tuple[str, Path], tmp_path: Path
) -> None:
    first, _ = run(tmp_path / "cache", bucket[0])
    again, lines = run(tmp_path / "cache", f"{bucket[0]}/")
    assert len(lines) == 1  # what is left out
    assert again.sha256 == first.sha256


def test_names_of_a_store_may_hold_what_a_url_may_not(s3: str, tmp_path: Path) -> None:
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    root = f"bucket/odd-{tmp_path.name}"
    for number, name in enumerate(("C#.txt", "C#2.txt", "what?.txt", "what?2.txt")):
        files.pipe_file(f"{root}/{name}", f"{number}\n".encode() * 10)
    file, _ = run(tmp_path / "cache", f"s3://{root}")
    assert bytes(file.tokens[:]) == b"\0".join(f"{n}\n".encode() * 10 for n in range(4)) + b"\0"
    files.pipe_file(f"{root}//C#.txt", b"x")
    with pytest.raises(ValueError, match="differ by a doubled slash alone"):
        run(tmp_path / "cache", f"s3://{root}")


def test_shares_of_a_bucket_are_built_apart(bucket: tuple[str, Path], tmp_path: Path) -> None:
    url, _ = bucket
    datasets = [DatasetConfig(paths=(url,))]
    counts = [
        prepare_share(datasets, (i, 2), cache=str(tmp_path / "c"), report=lambda line: None)
        for i in range(2)
    ]
    assert sum(counts) == 3
    lines = run(tmp_path / "c", url)[1]
    assert len(lines) == 1  # nothing to build


def test_a_file_that_changes_under_the_copy_is_refused(
    bucket: tuple[str, Path], tmp_path: Path
) -> None:
    (found,), _ = find_remote(f"{bucket[0]}/a 1.txt")
    old = Remote(found.url, found.size, "another")
    with (
        pytest.raises(ValueError, match="changed while it was read; start again"),
        fetched(old, tmp_path / "x.bin", lambda done: None),
    ):
        pass
    told: list[int] = []
    with fetched(found, tmp_path / "x.bin", told.append) as copy:
        assert copy.read_bytes() == TEXT
    assert told[-1] == len(TEXT)
    assert list(tmp_path.glob(".x.bin*")) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.txt", b"", "is empty"),
        ("x.parquet", TEXT, "is no Parquet file"),
        (
            "x.txt.gz",
            gzip.compress(b'{"text": "a"}\n' * 9, mtime=0),
            "looks like JSON, a record a line",
        ),
        ("x.txt.gz", gzip.compress(TEXT, mtime=0)[:-9], "cannot be unpacked by gzip"),
        ("x.bin", b"\0" * 100, "tokens are read from a disk; copy them and their manifest"),
        ("x.parquet.gz", b"\0" * 100, "is packed by gzip: unpack it"),
        (None, b"", "no such file"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str | None) else "",
)
def test_a_bad_file_is_one_line_that_names_it(
    s3: str, tmp_path: Path, name: str | None, content: bytes, words: str
) -> None:
    url = f"{s3}/bad-{tmp_path.name}/{name}"
    if name is not None:
        files = s3fs.S3FileSystem(skip_instance_cache=True)
        files.pipe_file(url.removeprefix("s3://"), content)
    with pytest.raises(ValueError, match=words) as caught:
        run(tmp_path / "cache", url)
    assert str(caught.value).startswith(f"data_paths: {url}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://user:pass@host/x.txt", "data_paths: https://host/x.txt: a name or password"),
        ("https://host/x.txt?X-Amz-Signature=1", "x.txt: X-Amz-Signature in a URL is a secret"),
        ("https://host/*.txt", "a web server lists no files; name each of them"),
        ("zip://x.txt::s3://bucket/x.zip", "holds '::'"),
        ("nothing://host/x.txt", "Protocol not known: nothing"),
        ("gs://bucket/x.txt", r"gcsfs.*pip install 'spectral-dist\[store\]'"),
        ("s3://bucket/none/", "no such file"),
        ("s3://bucket/none-*.txt", "no file matches"),
        ("s3://no-such-bucket/x.txt", "no such file"),
    ],
)
def test_a_url_that_stands_for_no_file_is_refused(
    s3: str, tmp_path: Path, url: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        run(tmp_path, url)
    assert "pass" not in str(caught.value).replace("password", "")
    assert "Signature=" not in str(caught.value)


def test_without_credentials_it_is_the_users_to_mend(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()  # with the credentials it had before
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"x\.txt: may not be read: .*credentials"):
        run(tmp_path, "s3://bucket/x.txt")


class _Web(BaseHTTPRequestHandler):
    """Serves one text; the path says how."""

    failures: dict[str, int] = {}  # noqa: RUF012 (shared by all requests of a test)

    def do_HEAD(self) -> None:
        self._answer(b"" if "none" in self.path else TEXT, head=True)

    def do_GET(self) -> None:
        self._answer(b"" if "none" in self.path else TEXT, head=False)

    def _answer(self, content: bytes, *, head: bool) -> None:
        if self.failures.get(self.path, 0) > 0:
            self.failures[self.path] -= 1
            self.send_error(503)
            return
        if self.path[1:4] in ("403", "404", "410"):
            self.send_error(int(self.path[1:4]))
            return
        if "short" in self.path and not head:
            content = content[:-10]
        gz = ".gz" in self.path
        content = gzip.compress(content, mtime=0) if gz else content
        self.send_response(200)
        if gz:  # as servers do that take the ending for the encoding
            self.send_header("Content-Encoding", "gzip")
        if "sizeless" not in self.path:
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", '"1"')
        self.end_headers()
        if not head:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Be silent."""


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server without a wait between two tries."""
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0, 0.0))
    _Web.failures = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "x.txt?download=true", "sizeless.txt"])
def test_a_file_of_a_web_server(web: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "x.txt").write_bytes(TEXT)
    here, _ = run(tmp_path, str(tmp_path / "x.txt"))
    there, lines = run(tmp_path / "cache", f"{web}/{name}")
    assert bytes(there.tokens[:]) == bytes(here.tokens[:])
    again = run(tmp_path / "cache", f"{web}/{name}")[1]
    unknown = [
        f"{web}/{name}: its server does not tell whether it changes; tokens that are there"
        " already are used"
    ]
    assert again == (unknown if "sizeless" in name else [])
    assert lines[: len(again)] == again


def test_a_server_that_is_busy_is_asked_again(web: str, tmp_path: Path) -> None:
    _Web.failures = {"/x.txt": 3}
    assert run(tmp_path / "a", f"{web}/x.txt")[0].documents == 50
    # Four tries, each by HEAD and by GET.
    _Web.failures = {"/x.txt": 7}
    assert find_remote(f"{web}/x.txt")[0][0].size == len(TEXT)
    assert _Web.failures == {"/x.txt": 0}
    _Web.failures = {"/x.txt": 1000}
    with pytest.raises(Ending, match=r"x\.txt: .*503") as caught:
        run(tmp_path / "b", f"{web}/x.txt")
    assert caught.value.code == FAULT


def test_a_server_that_goes_away_is_a_fault_of_the_machine(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After the files were looked at.
    monkeypatch.setattr("spectral_dist.data.tokens.read_head", lambda remote, size: TEXT)
    _Web.failures = {"/a.txt": 0, "/b.txt": 0}
    found = find_remote

    def then_gone(url: str) -> tuple[list[Remote], bool]:
        answer = found(url)
        _Web.failures[f"/{url[-5:]}"] = 1000
        return answer

    monkeypatch.setattr("spectral_dist.data.sources.find_remote", then_gone)
    with pytest.raises(Ending, match=r"data_paths: http.*[ab]\.txt: .*503") as caught:
        run(tmp_path, f"{web}/a.txt", f"{web}/b.txt")
    assert caught.value.code == FAULT


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("403.txt", "may not be read: .*403"),
        ("404.txt", "no such file"),
        ("410.txt", "no such file"),
        ("short.txt", "changed while it was read; start again"),
    ],
)
def test_what_a_web_server_refuses_is_the_users_to_mend(
    web: str, tmp_path: Path, name: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path, f"{web}/{name}")


def test_a_cache_that_cannot_be_written_is_named(web: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^data_cache: .*file/http.*: Not a directory"):
        run(tmp_path / "file", f"{web}/x.txt")


def test_the_place_of_a_url_is_inside_the_cache(tmp_path: Path) -> None:
    places = [
        place_of(url, tmp_path)
        for url in (
            *("s3://b/a/x.txt", "s3://b/../../../../x.txt", "s3://b/a%2Fx.txt", "s3://c/a/x.txt"),
            *("s3://b/a//x.txt", "s3://b/a/x.txt#1", "s3://b/a/x.txt#2", "s3://b/a/x.txt?1"),
            *("https://b/a/x.txt", "https://b/a/x.txt?v=1", "https://b/a/x.txt?v=2", "s3://b/./x"),
        )
    ]
    assert len(set(places)) == len(places)
    assert all(tmp_path in place.resolve().parents for place in places)
    assert all(place.name.startswith("x") or "%" in place.name for place in places)
    assert shown("https://a:b@host/x?token=1") == "https://host/x"
    assert shown("s3://bucket/a?b.txt") == "s3://bucket/a?b.txt"


def test_the_cache_is_the_users_unless_a_setting_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remote.cache_folder("auto") == tmp_path / "spectral_dist" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert remote.cache_folder("auto") == tmp_path / ".cache" / "spectral_dist" / "data"
    assert remote.cache_folder("~/x") == tmp_path / "x"
