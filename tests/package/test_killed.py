"""What writes a file, killed at a random moment: the file is whole or not there, and the next run succeeds.

Installing, downloading and embedding files have tests of their own that kill them (tests/bundles, tests/fetch,
tests/pipelines): here they are killed with `--hypothesis-profile=long` only, which kills each 200 times, not twice.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import settings

from ..support.tiny_model import make_tiny_llama

ROOT = Path(__file__).resolve().parents[2]
KILLS = 200 if settings.default is not None and settings.default.max_examples > 100 else 2

# each begins with what it needs, says so, writes the file named last, and says so; `check` raises if the file is broken
OPERATIONS = {
    "quantize": (
        """
        from llcuda_ffi.quantization import quantize
        work = lambda: quantize(model, target, "Q8_0", pure=True)
        """,
        "Model.load(target, trial=False).close()",
    ),
    "write_gguf": (
        """
        import numpy as np
        from llcuda_ffi.gguf.writer import write_gguf
        tensors = {f"t{i}": np.ones((256, 1024), np.float32) for i in range(8)}
        work = lambda: write_gguf(target, {"general.architecture": "llama"}, tensors)
        """,
        "assert len(GGUFReader(target).tensors) == 8",
    ),
    "save_gguf": (
        """
        from llcuda_ffi.conversion.tensors import save_gguf
        with GGUFReader(model) as reader:
            metadata = {k: v for k, v in reader.metadata.items() if k != "general.file_type"}
            tensors = {name: reader.dequantize(name) for name in reader.tensors}
        work = lambda: save_gguf(tensors, metadata, target, "Q8_0")
        """,
        "Model.load(target, trial=False).close()",
    ),
    "save_state": (
        """
        from llcuda_ffi import Llama
        llm = Llama(model, n_ctx=128, n_parallel=1, n_threads=1)
        llm.generate("the quick brown fox", max_tokens=60, ignore_eos=True)
        work = lambda: [llm.save_state(target) for _ in range(20)]
        """,
        """
        from llcuda_ffi import Llama
        with Llama(model, n_ctx=128, n_parallel=1, n_threads=1) as llm:
            assert llm.load_state(target) > 0
        """,
    ),
}
LONG = {
    "install": (
        """
        import os, shutil
        from llcuda_ffi import bundles
        from llcuda_ffi.bundles import own
        folder = Path(model).parent / "libs"
        if not folder.exists():
            shutil.copytree(bundles.ensure().path, folder, ignore=shutil.ignore_patterns("receipt.json"))
        os.environ["LLCUDA_FFI_CACHE"] = target
        work = lambda: own.open_build(folder, progress=False)
        """,
        """
        from llcuda_ffi.bundles.installed import read
        for receipt in Path(target).glob("bundles/*/receipt.json"):
            read(receipt.parent).verify()
        """,
    ),
    "download": (
        """
        import hashlib, http.server, threading
        from llcuda_ffi.fetch.http import download
        from llcuda_ffi.fetch.integrity import Expected
        content = bytes(range(256)) * 40_000
        class Serve(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                begin = int((self.headers["Range"] or "bytes=0-")[6:].split("-")[0])
                self.send_response(206 if begin else 200)
                self.send_header("Content-Length", str(len(content) - begin))
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                self.wfile.write(content[begin:])
            def log_message(self, *_):
                pass
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Serve)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        expected = Expected(len(content), hashlib.sha256(content).hexdigest())
        url = f"http://127.0.0.1:{server.server_port}/a.bin"
        work = lambda: download(url, Path(target), expected, progress=False)
        """,
        "assert Path(target).read_bytes() == bytes(range(256)) * 40_000",
    ),
    "convert": (
        """
        from llcuda_ffi.conversion.bert import convert_bert
        from tests.support.tiny_bert import write_tiny_bert
        folder = Path(model).parent / "bert"
        if not folder.exists():
            folder.mkdir()
            write_tiny_bert(folder)
        work = lambda: convert_bert(folder, target)
        """,
        "Model.load(target, trial=False).close()",
    ),
    "embed.npy": (
        """
        from llcuda_ffi.conversion.bert import convert_bert
        from llcuda_ffi.embedder import Embedder
        from llcuda_ffi.pipelines.files import embed_file
        from tests.support.tiny_bert import write_tiny_bert
        folder = Path(model).parent / "bert"
        if not folder.exists():
            folder.mkdir()
            write_tiny_bert(folder)
            convert_bert(folder, folder / "bert.gguf")
            (folder / "in.txt").write_text("the quick brown fox\\n" * 300)
        embedder = Embedder(folder / "bert.gguf", device="cpu")
        work = lambda: embed_file(embedder, folder / "in.txt", target, part_rows=16)
        """,
        """
        import numpy as np
        found = np.load(target)
        assert len(found) == 300 and np.isfinite(found).all()
        """,
    ),
}
if KILLS > 2:
    OPERATIONS |= LONG
HEAD = """
import sys
from pathlib import Path
from llcuda_ffi.core.model import Model
from llcuda_ffi.gguf import GGUFReader
model, target = sys.argv[1:]
"""


def _start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_while_it_writes(name: str, tmp_path: Path) -> None:
    """Killed between its first and its last moment, and once not at all."""
    work, check = map(textwrap.dedent, OPERATIONS[name])
    work += "\nprint('ready', flush=True)\nwork()\nprint('done', flush=True)\nsys.stdin.read()\n"
    model, target = tmp_path / "model.gguf", tmp_path / "out" / f"target-{name}"
    make_tiny_llama(model)
    target.parent.mkdir()
    r, longest = random.Random(name), 0.0
    for kill in range(KILLS + 2):
        child = _start(work, model, target)
        assert _line(child) == "ready"
        began = time.perf_counter()
        if kill == 0:  # how long it takes
            assert _line(child) == "done"
            longest = time.perf_counter() - began
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        elif kill <= KILLS:
            time.sleep(r.uniform(0, longest))
        else:
            assert _line(child) == "done"
        child.kill()
        child.communicate()
        if target.exists():
            checked = _start(check, model, target)
            checked.communicate()
            assert checked.returncode == 0, f"the {name} left a broken file when it was killed"
    assert target.exists()
