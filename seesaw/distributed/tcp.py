"""A TCP connection between each two ranks, which find each other through a store that all see.

For a trusted network: what ranks say is neither encrypted nor signed. A caller only has to know the
word that the rank it calls has put into the store.
"""

from __future__ import annotations

import secrets
import socket
import struct
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from seesaw import envs
from seesaw.distributed.native import NativeTransport
from seesaw.errors import ConfigError
from seesaw.plan.workspace import MAX_HANDOVERS

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from seesaw import _cpu

_WORD_BYTES = 16
_RANK = struct.Struct("<I")
_ALIVE = ((socket.TCP_KEEPIDLE, 2), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 4))
"""Seconds, seconds, times: a link that is cut, or a host that is gone without a word, is noticed
in 6 seconds where nothing is on its way. Where something is, TcpLinks looks at what the peer's
kernel has acknowledged. A peer that is only busy does not show in either."""

CALL_S = 6.0
"""How long a call may take: the rank that is called has listened since before it said where."""


def join(rank: int, num_ranks: int, store: Store, timeout_s: float) -> NativeTransport:
    """Wait for the other ranks. Raises ConfigError (`check_host`), and RuntimeError where another
    rank cannot be reached."""

    def links(number: int) -> _cpu.Links:
        name = f"exchange {number} of " if number else ""
        return _link(rank, num_ranks, store, timeout_s, f"{name}rank")

    return NativeTransport(links(0), rank, links)


def _link(rank: int, num_ranks: int, store: Store, timeout_s: float, name: str) -> _cpu.TcpLinks:
    """One set of connections; `name` tells sets apart in the store."""
    from seesaw._cpu import TcpLinks

    sockets = [-1] * num_ranks
    for peer, connection in _connect(rank, num_ranks, store, timeout_s, name).items():
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _ALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        sockets[peer] = connection.detach()
    return TcpLinks(sockets=sockets, rank=rank, most_under_way=MAX_HANDOVERS, timeout_s=timeout_s)


def check_host() -> None:
    """Raises ConfigError where a rank cannot listen at SEESAW_COMM_HOST. Where ranks are started
    with a command of their own they may have networks of their own: each looks for itself then."""
    if not envs.rank_command(0):
        _listen().close()


def _connect(
    rank: int, num_ranks: int, store: Store, timeout_s: float, name: str
) -> dict[int, socket.socket]:
    """Sockets by peer: each rank calls those below it."""
    deadline_s = time.monotonic() + timeout_s
    store.set_timeout(timedelta(seconds=timeout_s))
    word = secrets.token_bytes(_WORD_BYTES)
    found: dict[int, socket.socket] = {}
    with _listen() as listener:
        host, port = listener.getsockname()[:2]
        store.set(f"{name}{rank}", f"{word.hex()} {port} {host}")
        for peer in range(rank):
            found[peer] = _call(peer, store, f"{name}{peer}", rank, deadline_s)
        while len(found) < num_ranks - 1:
            listener.settimeout(max(0.1, deadline_s - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError as error:
                missing = sorted({*range(rank + 1, num_ranks)} - {*found})
                raise RuntimeError(
                    f"rank {rank} waited {timeout_s:g} s for ranks {missing} to connect"
                ) from error
            caller = _hear(connection, word)
            if caller is None or not rank < caller < num_ranks or caller in found:
                connection.close()  # nobody of ours
            else:
                found[caller] = connection
    return found


def _listen() -> socket.socket:
    host = envs.comm_host(0)  # of a rank, its own only: `engine/rank_command.py`
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, 0), family=family)
    except OSError as error:
        raise ConfigError(
            f"SEESAW_COMM_HOST={host}: a rank cannot listen there ({error}). Set it to an "
            "address of this host that the other ranks can reach."
        ) from error
    if listener.getsockname()[0] in ("0.0.0.0", "::"):
        listener.close()
        raise ConfigError(
            f"SEESAW_COMM_HOST={host}: expected one address that the other ranks can reach, not "
            "all of this host's."
        )
    return listener


def _call(peer: int, store: Store, key: str, rank: int, deadline_s: float) -> socket.socket:
    word, port, host = store.get(key).decode().split()
    left_s = min(max(0.1, deadline_s - time.monotonic()), CALL_S)
    try:
        connection = socket.create_connection((host, int(port)), timeout=left_s)
        connection.sendall(bytes.fromhex(word) + _RANK.pack(rank))
    except OSError as error:
        raise RuntimeError(
            f"rank {rank} cannot reach rank {peer} at {host}:{port} ({error})"
        ) from error
    return connection


def _hear(connection: socket.socket, word: bytes) -> int | None:
    """The rank that calls; None where it is somebody else."""
    connection.settimeout(5.0)
    try:
        told = connection.recv(_WORD_BYTES + _RANK.size, socket.MSG_WAITALL)
    except OSError:
        return None
    if len(told) != _WORD_BYTES + _RANK.size or not secrets.compare_digest(
        told[:_WORD_BYTES], word
    ):
        return None
    caller: int = _RANK.unpack(told[_WORD_BYTES:])[0]
    return caller
