"""A hub on this machine, which speaks what the client of the Hugging Face hub needs."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


class Hub:
    """Repositories that are served, and what was requested.

    Attributes:
        files: "org/name/file" -> bytes.
        requests: (method, path, range header) of each request.
        breaks_after: bytes after which each answer breaks off; None sends all.
        damaged: files whose bytes are sent with an error in them.
        status: "org/name" -> (HTTP status, error code) of repositories that are refused.
        tokens: the authorization headers that came.
        says_hash: whether ETags are hashes.
        elsewhere: another of these, to which requests for files are sent on, as the real hub does.
    """

    def __init__(self):
        self.files, self.requests, self.status, self.tokens = {}, [], {}, []
        self.breaks_after, self.damaged, self.says_hash = None, set(), True
        self.address, self.elsewhere = "", None

    def handler(hub):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self._answer(body=False)

            def do_GET(self):
                self._answer(body=True)

            def _answer(self, *, body):
                hub.requests.append((self.command, self.path, self.headers.get("Range")))
                hub.tokens.append(self.headers.get("Authorization"))
                repository, _, rest = self.path.lstrip("/").partition("/resolve/")
                revision, _, file = rest.partition("/")
                if repository in hub.status:
                    return self._refuse(*hub.status[repository])
                if not any(name.startswith(f"{repository}/") for name in hub.files):
                    return self._refuse(401, "RepoNotFound")
                if revision not in ("main", "v1", COMMIT):
                    return self._refuse(404, "RevisionNotFound")
                content = hub.files.get(f"{repository}/{file}")
                if content is None:
                    return self._refuse(404, "EntryNotFound")
                if hub.elsewhere is not None:
                    return self._send_on(content)
                self._send(content, f"{repository}/{file}", body=body)

            def _send_on(self, content):
                self.send_response(302)
                self.send_header("Location", f"{hub.elsewhere.address}{self.path}")
                self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def _refuse(self, status, code):
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def _send(self, content, name, *, body):
                start = 0
                if wanted := self.headers.get("Range"):
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                self.send_response(206 if start else 200)
                digest = hashlib.sha256(content).hexdigest()
                self.send_header("ETag", f'"{digest if hub.says_hash else "version-7"}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    self.send_header(
                        "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                    )
                self.end_headers()
                if not body:
                    return
                sent = content[start:]
                if name in hub.damaged:
                    sent = bytes([sent[0] ^ 1]) + sent[1:]
                if hub.breaks_after is not None and len(sent) > hub.breaks_after:
                    sent = sent[: hub.breaks_after]
                    self.close_connection = True
                self.wfile.write(sent)

        return Handler


@contextmanager
def serving(monkeypatch):
    """Serve an empty hub, which the client takes for the real one while the block runs."""
    from huggingface_hub import constants

    with running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


@contextmanager
def running():
    """Run an empty hub at an address of this machine while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub.handler())
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
