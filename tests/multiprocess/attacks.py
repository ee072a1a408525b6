"""What a stranger may send to the ports of a run: forged calls, broken HTTP, floods.

Each attack has a name, so that a run that one of them changes says which. `ATTACKS` are sent to the
control service, `RUBBISH` to JAX's port as well.
"""

import contextlib
import gzip
import json
import socket
import struct
import xmlrpc.client
from collections.abc import Iterator

from spectral_dist.cluster.client import PROOF

END = json.dumps({"message": "\x1b[31mbye", "code": 0})
STOP = json.dumps({"number": 1, "sync_points": 1, "progress": 1, "phase": "x", "stop_signal": 15})
# name -> a method and its arguments: end the run, stop it, hang it, fail its save, fill its table
CALLS: dict[str, tuple[str, ...]] = {
    "end another process": ("put", "ended/1", END),
    "end the coordinator": ("put", "ended/0", END),
    "stop at the first step": ("put", "planned/stop", "[1, 15]"),
    "save at once": ("put", "planned/saves", "[1]"),
    "forget the plan": ("remove", "planned"),
    "a signal in a heartbeat": ("heartbeat", "0", STOP),
    "a heartbeat of nobody": ("heartbeat", "99", STOP),
    "an index that is no number": ("heartbeat", "../0", STOP),
    "take an index": ("report", "1", "{}"),
    "other settings": ("put", "settings/1", "{}"),
    "another mesh": ("put", "from_coordinator/mesh", "[{}]"),
    "give up at the start": ("put", "gave_up", '"x"'),
    "fail a save": ("put", "folders/1/saves/1/failed/1", '"no space"'),
    "answer for another process": ("put", "folders/1/rounds/1/1", "true"),
    "forget the heartbeats": ("remove", "heartbeats"),
    "forget all": ("remove", ""),
    "be done": ("put", "done/1", "true"),
    "be gone": ("put", "gone/1", "true"),
    "another port of JAX": ("put", "jax_port", "1"),
    "no JSON": ("put", "planned/stop", "{"),
    "a long value": ("put", "big", "x" * (1 << 22)),
    "a long key": ("put", "k" * 100_000, "1"),
    "read the port": ("get", "jax_port"),
    "list the methods": ("system.listMethods",),
    "several calls in one": ("system.multicall", "[]"),
    "a private method": ("_refuse", "127.0.0.1"),
    "an attribute": ("closing",),
}
_LAUGHS = "".join(
    f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(10)
).encode()
_BOMB = gzip.compress(b"\0" * 10_000_000)


def _posted(body: bytes, *headers: str) -> bytes:
    lines = ["POST /RPC2 HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _forged() -> Iterator[tuple[str, bytes]]:
    for name, (method, *arguments) in CALLS.items():
        body = xmlrpc.client.dumps(tuple(arguments), method).encode()
        yield name, _posted(body)
        yield f"{name}, guessed", _posted(body, f"{PROOF}: {'0' * 64}")
        yield f"{name}, no hex", _posted(body, f"{PROOF}: \xc4\x9f")


_PUT = xmlrpc.client.dumps(("ended/1", END), "put").encode()
RUBBISH = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "HTTP/2, a huge frame": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\0\0\0\0\0\1",
    "zeros": b"\0" * 5000,
    "one long line": b"A" * 200_000,
    "nothing": b"",
}
ATTACKS = dict(_forged()) | {
    **RUBBISH,
    "GET": b"GET / HTTP/1.1\r\n\r\n",
    "DELETE": b"DELETE /RPC2 HTTP/1.1\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "no length": b"POST /RPC2 HTTP/1.1\r\n\r\n" + _PUT,
    "a length below 0": b"POST /RPC2 HTTP/1.1\r\nContent-Length: -1\r\n\r\n" + _PUT,
    "a great length": b"POST /RPC2 HTTP/1.1\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
    "more length than text": b"POST /RPC2 HTTP/1.1\r\nContent-Length: 9999\r\n\r\n" + _PUT,
    "two lengths": _posted(_PUT, "Content-Length: 0"),
    "chunks": b"POST /RPC2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "a thousand headers": _posted(_PUT, *(f"X-{n}: 1" for n in range(1000))),
    "a long proof": _posted(_PUT, f"{PROOF}: {'0' * 60_000}"),
    "two proofs": _posted(_PUT, f"{PROOF}: {'0' * 64}", f"{PROOF}: {'1' * 64}"),
    "an empty proof": _posted(_PUT, f"{PROOF}: "),
    "billion laughs": _posted(b"<!DOCTYPE x [" + _LAUGHS + b"]><methodCall>&l9;</methodCall>"),
    "a gzip bomb": _posted(_BOMB, "Content-Encoding: gzip"),
    "another file by XML": _posted(
        b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><methodCall>&e;</methodCall>'
    ),
    "no UTF-8": _posted(b"\xff\xfe" + _PUT),
    "a hundred calls in a row": _posted(_PUT) * 100,
    "expects 100": _posted(_PUT, "Expect: 100-continue"),
}


def send(port: int, name: str, attack: bytes) -> str:
    """Send one attack; return the status of the first answer, or "" where there is none."""
    with (
        contextlib.suppress(OSError),  # closed while it was sent
        socket.create_connection(("127.0.0.1", port), timeout=30) as stranger,
    ):
        stranger.sendall(attack)
        if name.startswith("more length"):
            stranger.shutdown(socket.SHUT_WR)
        elif attack:
            stranger.settimeout(1.0)
        else:
            return ""
        answer = stranger.recv(4096).split(b" ")
        return answer[1].decode() if answer[0].startswith(b"HTTP/") else ""
    return ""


def cut_off(port: int) -> None:
    """Begin a call and reset the connection in the middle, as a crashed host does."""
    stranger = socket.create_connection(("127.0.0.1", port), timeout=30)
    stranger.sendall(_posted(_PUT)[:60])
    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stranger.close()


def idle(port: int, count: int) -> list[socket.socket]:
    """Open connections that say nothing, or one byte of a call; the caller closes them."""
    found = []
    for number in range(count):
        found.append(socket.create_connection(("127.0.0.1", port), timeout=30))
        if number % 2:
            found[-1].sendall(b"P")
    return found
