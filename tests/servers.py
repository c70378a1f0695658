"""Servers of this machine that datasets and runs are read from and written to, well and badly behaved."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import aiohttp
import fsspec
import pytest
import yarl
from aiohttp import web

from drwr_dist.data import remote


class Site:
    """Serves a folder with range support; counts body bytes; `fault` may answer a request in its own way."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent, self.requests = folder, 0, 0
        self.fault: Callable[[web.Request], str | None] = lambda request: None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        fault = self.fault(request)
        if fault == "500":
            return web.Response(status=500)
        path = self.folder / request.match_info["path"]
        if not path.is_file():
            return web.Response(status=404)
        data, wanted = path.read_bytes(), request.http_range
        start, stop = wanted.start or 0, len(data) if wanted.stop is None else min(wanted.stop, len(data))
        if start >= len(data):
            return web.Response(status=416)
        body = data[start:stop]
        headers = {"Content-Length": str(len(body)), "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        response = web.StreamResponse(status=206 if request.headers.get("Range") else 200, headers=headers)
        await response.prepare(request)
        half = len(body) // 2
        await response.write(body[:half])
        self.sent += half
        if fault == "drop":
            assert request.transport is not None
            request.transport.abort()
            return response
        if fault == "slow":
            await asyncio.sleep(1)
        await response.write(body[half:])
        self.sent += len(body) - half
        await response.write_eof()
        return response


class Proxy:
    """Passes requests on to an S3-compatible server, unless `fault` spoils them."""

    def __init__(self, target: str) -> None:
        self.target, self.requests = target, 0
        self.fault: Callable[[web.Request], str | None] = lambda request: None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        fault = self.fault(request)
        if fault == "500":
            return web.Response(status=500, text="<Error><Code>InternalError</Code></Error>")
        if fault == "drop":
            assert request.transport is not None
            request.transport.abort()
        if fault == "slow":
            await asyncio.sleep(1)
        url = self.target + request.raw_path
        body = await request.read()
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, yarl.URL(url, encoded=True), headers=request.headers, data=body) as found,
        ):
            kept = {k: v for k, v in found.headers.items() if k.lower() not in ("transfer-encoding", "connection")}
            return web.Response(status=found.status, headers=kept, body=await found.read())


Served = TypeVar("Served", Site, Proxy)


@contextmanager
def serve(site: Served) -> Iterator[tuple[str, Served]]:
    loop, ready = asyncio.new_event_loop(), threading.Event()
    port: list[int] = []

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=2**28)
        app.router.add_route("*", "/{path:.*}", site.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        listener = web.TCPSite(runner, "127.0.0.1", 0)
        await listener.start()
        port.append(listener._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]
        ready.set()
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{port[0]}", site
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def first(count: int, fault: str, name: str = ".tar") -> Callable[[web.Request], str | None]:
    """Spoil the first so many requests for files of this name."""
    left = [count]

    def decide(request: web.Request) -> str | None:
        if name not in request.path or left[0] <= 0:
            return None
        left[0] -= 1
        return fault

    return decide


@contextmanager
def server_program(module: str, *arguments: str) -> Iterator[str]:
    """Run `python -m MODULE arguments …` while it is needed; {port} stands for a free one. Gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module, *(argument.format(port=port) for argument in arguments)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the server did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    with server_program("moto.server", "-H", "127.0.0.1", "-p", "{port}") as url:
        yield url


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A fresh bucket, found through the environment as users' programs find theirs."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{abs(hash(str(tmp_path)))}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that other tests fetched is found again, and no retry is waited for long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "RETRY_PAUSES", (0.05, 0.05, 0.05))
    yield
    forget_connections()


def forget_connections() -> None:
    """Find servers through the environment anew, as a process that has just started does."""
    remote._filesystem.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fsspec.get_filesystem_class("http").clear_instance_cache()
