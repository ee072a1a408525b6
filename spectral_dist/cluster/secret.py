"""The secret of a run, which every call of the control service proves to know.

Process 0 makes it and leaves it in the run folder, in a file that only its own user can read; the
others take it from there, and once all have reported in the file is gone. A proof is the HMAC of a
call's text: it shows that the caller knows the secret, and does not tell it. Who can read the
network's traffic can repeat a call, and no more. Read `proof`.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

_NAME = ".secret-"


def _path(folder: Path, job: str) -> Path:
    # By the job: what an earlier start has left behind is not read as this one's.
    return folder / (_NAME + hashlib.sha256(job.encode()).hexdigest()[:16])


def leave_secret(folder: Path, job: str) -> str:
    """Make a new secret and leave it in the run folder, which is created if missing; return it.

    Args:
      folder: the run folder.
      job: the text that is the same in all processes of this start.

    Raises:
      ValueError: if the folder cannot be written.
    """
    secret = secrets.token_hex(32)
    path = _path(folder, job)
    written = path.with_suffix(f".{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_NAME}*"):  # by a start that was killed
            left.unlink(missing_ok=True)
        # Never readable by others, not even for a moment.
        descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secret)
        written.replace(path)
    except OSError as error:
        reason = error.strerror
        raise ValueError(f"checkpoint_dir: {folder} cannot be written: {reason}") from error
    return secret


def find_secret(folder: Path, job: str) -> str:
    """Return the secret that lies in the run folder; "" if there is none yet."""
    try:
        return _path(folder, job).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def remove_secret(folder: Path, job: str) -> None:
    """Remove the file, as every process has read it; and the folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        _path(folder, job).unlink()
    with contextlib.suppress(OSError):  # a start that is refused leaves nothing behind
        folder.rmdir()


def proof(secret: str, text: bytes) -> str:
    """Return the proof that a caller who sends a text knows the secret: HMAC-SHA256, in hex."""
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def is_proof(given: str, secret: str, text: bytes) -> bool:
    """Return whether a proof is that of a text; takes equally long whatever is wrong with it."""
    return hmac.compare_digest(given.encode(), proof(secret, text).encode())
