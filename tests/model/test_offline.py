"""Bases without the hub: from a mirror, from the cache of an earlier fetch, from a folder; and one sentence where there is none of them.

A server in this process speaks as much of the hub's language as fetching takes, and each base is opened in a process of its own, for
huggingface_hub reads its variables once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/small"
OPEN = """
import sys, torch
from stylora.errors import UserError
from stylora.model.base import load_base
from stylora.model.device import Device
from stylora.model.tokenizer_file import context_length, tokenizer_file

def told(read, name):
    try:
        return read(name)
    except UserError as error:
        return f"refused: {error}"

def files(name):
    return f"{tokenizer_file(name).stat().st_size} bytes, context {context_length(name)}"

def base(name):
    opened = load_base(name, Device(device=torch.device("cpu"), dtype=torch.float32, why="test"))
    return f"sum {sum(parameter.sum().item() for parameter in opened.model.parameters())}, {opened.tokenizer.encode('ab')}"

for name in sys.argv[1:]:
    print(told(files, name), told(base, name), sep="\t")
"""


@dataclass
class Mirror:
    """address: as HF_ENDPOINT has it; asked: every request"""

    address: str
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def mirror(base_folder) -> Iterator[Mirror]:
    """The hub with one repository, `someone/small`: information, the list of files, and the files."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            told.asked.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            file = base_folder / path.rpartition("/")[2]
            files = sorted(entry.name for entry in base_folder.iterdir())
            if path.startswith(f"/{REPOSITORY}/resolve/") and file.is_file():
                self.reply(200, file.read_bytes(), body)
            elif path.startswith(f"/api/models/{REPOSITORY}/tree/"):
                rows = [{"type": "file", "path": name, "size": (base_folder / name).stat().st_size, "oid": "0" * 40} for name in files]
                self.reply(200, json.dumps(rows if path.endswith((COMMIT, "main")) else []).encode(), body)
            elif path.startswith(f"/api/models/{REPOSITORY}"):
                told_files = [{"rfilename": name} for name in files]
                self.reply(200, json.dumps({"id": REPOSITORY, "sha": COMMIT, "tags": [], "siblings": told_files}).encode(), body)
            else:
                known = path.startswith((f"/{REPOSITORY}/", f"/api/models/{REPOSITORY}"))
                self.reply(404, b"", body, error="EntryNotFound" if known else "RepoNotFound")

        def reply(self, status: int, content: bytes, body: bool, *, error: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told = Mirror(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield told
    server.shutdown()
    server.server_close()


@pytest.fixture
def opened(tmp_path):
    """`opened(name, ..., HF_ENDPOINT=...)`: what a fresh process with a hub cache of the test's own says of each name's files and model."""

    def run(*names: object, **variables: str) -> list[list[str]]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        environment = {**kept, "HF_HOME": str(tmp_path / "hub"), "PYTHONUTF8": "1", "no_proxy": "*", **variables}
        shown = subprocess.run(
            [sys.executable, "-c", OPEN, *map(str, names)], capture_output=True, encoding="utf-8", env=environment, check=False, timeout=300
        )
        assert shown.returncode == 0, shown.stderr
        return [line.split("\t") for line in shown.stdout.splitlines()]

    return run


def assert_refused(told: list[str], name: str) -> None:
    for sentence in told:
        assert sentence.startswith(f"refused: base: got '{name}', expected `tiny`, a folder"), sentence
        assert "check the name and the connection" in sentence


def test_a_mirror_then_its_cache_then_a_folder(opened, mirror, base_folder, tmp_path):
    """HF_ENDPOINT is where a hub id is fetched from. What was fetched opens with HF_HUB_OFFLINE, also from a cache that was carried
    elsewhere, and is what a folder of the same files is; what was not fetched is refused."""
    fetched, missing = opened(REPOSITORY, "someone/else", HF_ENDPOINT=mirror.address)
    assert any("model.safetensors" in request for request in mirror.asked) and any("someone/else" in request for request in mirror.asked)
    assert_refused(missing, "someone/else")
    mirror.asked.clear()
    carried = shutil.move(tmp_path / "hub", tmp_path / "另一块盘")
    copied = shutil.copytree(base_folder, tmp_path / "拷贝")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(carried), "HF_ENDPOINT": mirror.address}
    cached, folder, copy, missing = opened(REPOSITORY, base_folder, copied, "someone/else", **offline)
    assert fetched == cached == folder == copy
    assert "sum" in fetched[1] and "refused" not in "".join(fetched)
    assert_refused(missing, "someone/else")
    assert mirror.asked == []


@pytest.mark.slow  # huggingface_hub asks again for most of a minute before it gives up
def test_a_mirror_that_does_not_answer(opened):
    (told,) = opened(REPOSITORY, HF_ENDPOINT="http://127.0.0.1:9")
    assert_refused(told, REPOSITORY)


def test_hf_download_into_a_folder(mirror, base_folder, tmp_path):
    """What docs/offline.md says to do where there is a connection: the folder has every file of the base, byte for byte."""
    environment = {**os.environ, "HF_ENDPOINT": mirror.address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "no_proxy": "*"}
    program = shutil.which("hf", path=os.path.dirname(sys.executable))
    assert program is not None
    command = [program, "download", REPOSITORY, "--local-dir", str(tmp_path / "carried")]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=180)
    for file in base_folder.iterdir():
        assert (tmp_path / "carried" / file.name).read_bytes() == file.read_bytes()
