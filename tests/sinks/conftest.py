"""Nothing here reaches a network: sockets lead to this machine alone, and a proxy notes who asks for more."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from fedsim import server_app

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@pytest.fixture(scope="module", autouse=True)
def _no_report() -> Iterator[None]:
    """Pages and figures take most of the time of a small run, and nobody here looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_app, "write_report", lambda *_: None)
        patch.setattr(server_app, "save_partition_figure", lambda *_: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def no_network() -> Iterator[list[str]]:
    """What was tried: connections of this process, and what its children (in Go, too) asked a proxy for."""
    tried: list[str] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded(sock: socket.socket, address: object) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):  # type: ignore[index]
            tried.append(f"connection to {address}")
            raise OSError(f"no network in a test, got {address}")
        connect(sock, address)  # type: ignore[arg-type]

    def asked(host: object, *args: object, **kwargs: object) -> object:
        if host not in (None, "localhost", "127.0.0.1", "::1", socket.gethostname()):
            tried.append(f"address of {host}")
            raise socket.gaierror(f"no network in a test, got {host}")
        return look_up(host, *args, **kwargs)  # type: ignore[arg-type]

    def listen() -> None:
        while True:
            try:
                other, _ = proxy.accept()
            except OSError:
                return
            with other:
                tried.append(f"proxy: {other.recv(200)!r}")

    with socket.create_server(("127.0.0.1", 0)) as proxy, pytest.MonkeyPatch.context() as patch:
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        for name in PROXIES:
            patch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setattr(socket.socket, "connect", guarded)
        patch.setattr(socket, "getaddrinfo", asked)
        yield tried
        proxy.shutdown(socket.SHUT_RDWR)
        listener.join(10)
    assert tried == []
