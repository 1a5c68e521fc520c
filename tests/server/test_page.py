"""The page at /: what is served; the whole of it in a browser is a heavy test."""

from __future__ import annotations

import shutil
from pathlib import Path

import PIL.Image
import pytest

from llcuda_ffi import bundles

from ..support.server_process import Server
from ..support.tiny_projector import make_tiny_projector, make_tiny_seer


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")]
)
def test_served(server: Server, path: str, kind: str) -> None:
    """Each file comes with its type and a policy that lets nothing in from elsewhere; no other file is served."""
    headers = server.headers(path)
    assert headers["content-type"].startswith(kind)
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"http://" not in server.send("GET", path)[1]
    assert server.send("GET", "/page/__init__.py")[0] == 404


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
def test_in_a_browser(smollm2: Path, tmp_path: Path) -> None:
    """A conversation, an edit, a new answer, stop by Escape, an error, a reload; nothing overflows a phone's width."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    server = Server(tmp_path / "log", smollm2, "-c", 512, "--api-key", "k")
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 360, "height": 700})
            page.set_default_timeout(120_000)
            complaints: list[str] = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(f"http://127.0.0.1:{server.port}/")
            expect = sync_api.expect
            expect(page.locator("#load")).to_contain_text("key")  # 401, in words
            page.click("summary")
            page.fill("#key", "k")
            page.locator("#key").blur()
            page.wait_for_selector("#model option", state="attached")
            page.fill("#max_tokens", "8")
            page.locator("#max_tokens").blur()
            page.click("summary")
            page.fill("#text", "Say hello.")
            page.keyboard.press("Enter")
            page.wait_for_selector("article.assistant >> text=a second")
            assert page.locator("article.assistant pre").nth(1).inner_text()
            page.click("text=Regenerate")
            page.wait_for_selector("article.assistant >> text=a second")
            page.click("text=Edit")
            assert page.input_value("#text") == "Say hello."
            page.click("summary")
            page.fill("#max_tokens", "")
            page.locator("#max_tokens").blur()
            page.click("summary")
            page.fill("#text", "Count to a thousand, each number on a line of its own.")
            page.keyboard.press("Enter")
            expect(page.locator("article.assistant pre").nth(1)).to_contain_text(" ", timeout=30_000)
            page.keyboard.press("Escape")
            page.wait_for_selector("#send:visible")
            page.reload()
            assert page.locator("article").count() == 2
            page.click("summary")
            page.fill("#temperature", "-1")
            page.locator("#temperature").blur()
            page.click("summary")
            page.fill("#text", "Now?")
            page.keyboard.press("Enter")
            page.wait_for_selector("article.error >> text=temperature")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            assert complaints == []
            browser.close()
    finally:
        assert server.stop() == 0


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
def test_an_image_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model sees, an image goes with the message, is shown beside it, and stays over an edit."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    bundles.ensure("v0.6.0-cpu", progress=False)  # has libmtmd
    monkeypatch.setenv("LLCUDA_FFI_BUNDLE", "v0.6.0-cpu")
    make_tiny_seer(tmp_path / "text.gguf")
    make_tiny_projector(tmp_path / "eye.gguf")
    PIL.Image.new("RGB", (40, 56), (200, 10, 10)).save(tmp_path / "red.png")
    server = Server(
        tmp_path / "log", tmp_path / "text.gguf", "--mmproj", tmp_path / "eye.gguf", "--default", "max_tokens=4"
    )
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 360, "height": 700})
            page.set_default_timeout(120_000)
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.wait_for_selector("#attach:visible")
            page.set_input_files("#file", tmp_path / "red.png")
            page.wait_for_selector("#images img")
            page.fill("#text", "what is it?")
            page.keyboard.press("Enter")
            page.wait_for_selector("article.assistant >> text=a second")
            assert page.locator("article.user img").count() == 1
            assert page.locator("article.user img").evaluate("image => image.naturalWidth") == 40
            page.click("text=Edit")
            assert page.locator("#images img").count() == 1
            browser.close()
    finally:
        assert server.stop() == 0
