"""A merchant's server that takes webhooks, as a process: `python tests/receiver.py FILE PORT [CERTIFICATE KEY]`.

What it does is in the path: /ok takes everything, /flaky/2 answers 500 twice to every message and then 204, /fail and
/status/410 answer with an error, /hang never answers, /slow answers after a second, /redirect leads to /ok, /moody/x
answers 500 until there is a file x beside FILE, /big has an
answer without an end. Every request is a line in FILE as soon as it has been read: path, headers, body, and how many
requests of the same path were being answered then.
"""

from __future__ import annotations

import json
import ssl
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SLOW_SECONDS = 1.0
HANG_SECONDS = 600.0

lock = threading.Lock()
seen: Counter[tuple[str, str]] = Counter()
in_progress: Counter[str] = Counter()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        path = self.path
        with lock:
            in_progress[path] += 1
            seen[path, self.headers.get("webhook-id", "")] += 1
            times = seen[path, self.headers.get("webhook-id", "")]
            line = {"path": path, "headers": dict(self.headers), "body": body, "beside": in_progress[path]}
            with Path(sys.argv[1]).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        try:
            self._answer(path, times)
        except OSError:
            pass  # whoever asked has gone
        finally:
            with lock:
                in_progress[path] -= 1

    def do_GET(self) -> None:
        self.do_POST()

    def _answer(self, path: str, times: int) -> None:
        _, name, *rest = path.split("/")
        match name:
            case "flaky":
                self._say(500 if times <= int(rest[0]) else 204)
            case "status":
                self._say(int(rest[0]))
            case "fail":
                self._say(500, b"out of order")
            case "moody":
                self._say(200 if Path(sys.argv[1]).with_name(rest[0]).exists() else 500)
            case "redirect":
                self._say(307, location="/ok/followed")
            case "hang":
                time.sleep(HANG_SECONDS)
            case "slow":
                time.sleep(SLOW_SECONDS)
                self._say(200)
            case "big":
                self.send_response(200)
                self.end_headers()
                while True:
                    self.wfile.write(b"x" * 65_536)
            case _:
                self._say(200, b"thanks")

    def _say(self, status: int, text: bytes = b"", location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
    server.daemon_threads = True
    if len(sys.argv) > 3:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[3], sys.argv[4])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
