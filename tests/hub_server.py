"""A hub on the loopback address with one dataset, whose answers fail as they are told to; under /files/ a plain server."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40
FAULTS = ("timeout", "reset", "truncate", "429", "503")


class Hub(ThreadingHTTPServer):
    """Serves ``files`` as the dataset o/d; every answer with file content takes the next of ``plan``: a fault or None."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], plan: Sequence[str | None] = ()) -> None:
        self.files, self.plan, self.failed, self.answered = files, list(plan), list[str](), 0
        self.lock, self.over = threading.Lock(), threading.Event()
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self) -> str | None:
        with self.lock:
            fault = self.plan.pop(0) if self.plan else None
            self.answered += fault is None
            if fault is not None:
                self.failed.append(fault)
            return fault

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are what this server is for."""


@contextmanager
def serving(files: dict[str, bytes], plan: Sequence[str | None] = ()) -> Iterator[Hub]:
    hub = Hub(files, plan)
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        hub.shutdown()
        hub.server_close()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode())

    def entry(self, path: str) -> dict[str, object]:
        data = self.server.files[path]
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        asked = json.loads(raw) if raw.startswith("{") else urllib.parse.parse_qs(raw)
        paths = asked.get("paths", [])
        self.send_json(
            [self.entry(p) for p in ([paths] if isinstance(paths, str) else paths) if p in self.server.files]
        )

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = re.fullmatch(r"/(?:datasets/o/d/resolve/[^/]+|files)/(.*)", path)
        if found and found[1] in self.server.files:
            self.send_file(found[1])
        elif path.startswith("/api/datasets/o/d/tree/"):
            self.send_tree(path.removeprefix("/api/datasets/o/d/tree/").partition("/")[2])
        elif path.startswith("/api/datasets/o/d"):
            names = [{"rfilename": name} for name in self.server.files]
            self.send_json({"id": "o/d", "sha": COMMIT, "siblings": names, "private": False, "tags": []})
        elif path == "/":
            self.send(200)
        else:
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def send_tree(self, folder: str) -> None:
        names = self.server.files
        inside = {os.path.dirname(name) for name in names} - {""}
        here: list[dict[str, object]] = [self.entry(name) for name in names if os.path.dirname(name) == folder]
        here += [
            {"type": "directory", "path": f, "oid": COMMIT} for f in sorted(inside) if os.path.dirname(f) == folder
        ]
        self.send_json(here)

    def send_file(self, name: str) -> None:
        data = self.server.files[name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        counts = asked or self.path.startswith("/files/")
        fault = self.server.next_fault() if self.command == "GET" and counts else None
        if self.headers.get("if-range") not in (None, headers["ETag"]):
            asked = None
        if fault in ("429", "503"):
            self.send(int(fault), b"busy")
            return
        if fault == "timeout":
            self.server.over.wait(3)
            self.close_connection = True
            return
        code, body = 200, data
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            code, body = 206, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.send(code, body, headers, len(body) // 2 if fault else None)
        if fault:
            self.wfile.flush()
            self.close_connection = True
            if fault == "reset":  # closing with this option set sends RST, not FIN
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
