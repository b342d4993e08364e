"""How ranks find each other over TCP: who may call, who is missed, where a rank listens."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("seesaw._cpu")

from seesaw.distributed import tcp
from seesaw.errors import ConfigError


@pytest.fixture
def store(tmp_path: Path) -> dist.Store:
    return dist.FileStore(str(tmp_path / "store"), -1)  # type: ignore[attr-defined]


def address_of(store: dist.Store, rank: int) -> tuple[str, str, int]:
    word, port, host = store.get(f"rank{rank}").decode().split()
    return word, host, int(port)


@contextlib.contextmanager
def waiting_rank(store: dist.Store, num_ranks: int, timeout_s: float) -> Iterator[object]:
    """Rank 0, which waits for the others to call, on a thread."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(tcp.join, 0, num_ranks, store, timeout_s)


def test_strangers_are_shown_out(store: dist.Store) -> None:
    with waiting_rank(store, 2, 30.0) as joining:
        word, host, port = address_of(store, 0)
        for words in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(16) + (1).to_bytes(4, "little"),
            bytes.fromhex(word) + (2).to_bytes(4, "little"),  # there is no such rank
            bytes.fromhex(word) + (0).to_bytes(4, "little"),  # that is itself
        ):
            with socket.create_connection((host, port)) as stranger:
                stranger.sendall(words)
                stranger.shutdown(socket.SHUT_WR)
                stranger.settimeout(10)
                assert stranger.recv(1) == b""
        other = tcp.join(1, 2, store, 30.0)
        one = joining.result(30)
    other.send(torch.tensor([5.0]), 0)
    x = torch.zeros(1)
    one.receive(x, 1)
    assert x.item() == 5.0
    one.close()
    other.close()


def test_a_rank_that_does_not_come_is_named(store: dist.Store) -> None:
    with waiting_rank(store, 3, 0.5) as joining, pytest.raises(RuntimeError, match=r"\[1, 2\]"):
        joining.result(30)


def test_a_rank_that_cannot_be_reached_is_named(store: dist.Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    store.set("rank0", f"{bytes(16).hex()} {port} 127.0.0.1")
    with pytest.raises(RuntimeError, match=rf"rank 1 cannot reach rank 0 at 127.0.0.1:{port}"):
        tcp.join(1, 2, store, 1.0)


@pytest.mark.parametrize(
    ("host", "why"),
    [("192.0.2.7", "cannot listen there"), ("no.such.host.invalid", "cannot listen there"),
     ("0.0.0.0", "not all of this host's")],
)  # fmt: skip
def test_an_address_that_is_of_no_use_is_refused(
    host: str, why: str, store: dist.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEESAW_COMM_HOST", host)
    with pytest.raises(ConfigError, match=f"SEESAW_COMM_HOST={host}.*{why}"):
        tcp.join(0, 2, store, 1.0)


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "localhost"])
def test_any_address_of_this_host_will_do(
    host: str, store: dist.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEESAW_COMM_HOST", host)
    try:
        tcp._listen().close()
    except ConfigError:
        pytest.skip(f"this host has no {host}")
    with waiting_rank(store, 2, 30.0) as joining:
        other = tcp.join(1, 2, store, 30.0)
        one = joining.result(30)
    comms = [links.comm([[0, 1]]) for links in (one, other)]
    with ThreadPoolExecutor(2) as threads:
        sums = threads.map(lambda comm: comm.all_reduce(torch.ones(2)).tolist(), comms)
        assert list(sums) == [[2.0, 2.0]] * 2
    for links in (one, other):
        links.close()
