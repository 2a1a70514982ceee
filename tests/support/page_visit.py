"""A server with painters without networks, and a headless Chromium that looks at its page."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import uvicorn
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from sid_ray.serving.contract import BusyError, Limits, Painted, ServedModel, WantedImage
from sid_ray.serving.web import web_app
from tests.support.fake_painting import MODELS, FakePainting
from tests.support.ray_head import free_ports

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 20_000  # for what comes at once on a machine that is not busy


class SlowPainting(FakePainting):
    """Requests whose first seed is in ``held`` wait; the next ``busy`` ones are sent away."""

    def __init__(self, models: Sequence[ServedModel] = MODELS, delay_s: float = 0.0):
        super().__init__(models, delay_s)
        self.held: set[int] = set()
        self.busy = 0

    async def _paint(self, model: ServedModel, wanted: list[WantedImage]) -> Sequence[Painted]:
        while wanted[0].seed in self.held:
            await asyncio.sleep(0.01)
        if self.busy:
            self.busy -= 1
            raise BusyError(1)
        return await super()._paint(model, wanted)


class _Mortal(uvicorn.Server):
    async def shutdown(self, sockets=None):
        """As a kill does it: what is being answered is cut off."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)


class PageServer:
    """The real web part on a port of loopback; it can be stopped, and started again there."""

    def __init__(self, painting: FakePainting, limits: Limits | None = None, token: str = ""):
        self.painting, self.limits, self.token = painting, limits, token
        (self.port,) = free_ports(1)
        self.origin = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        app = web_app(self.painting, self.limits, self.token)
        config = uvicorn.Config(
            app, port=self.port, log_level="critical", timeout_graceful_shutdown=0
        )
        self.server = _Mortal(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the server has not started"
            time.sleep(0.01)

    def stop(self) -> None:
        """At once, with requests under way."""
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join(timeout=20)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own. Fails where there is none: the page would go untested."""
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.fail(f"no browser found: one of {', '.join(CHROMIUMS)} is needed on PATH")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


class Visit:
    """A page of a server, and what went wrong in it."""

    def __init__(self, page: Page, server: PageServer):
        self.page, self.server = page, server
        self.painting = server.painting
        self.loud: list[str] = []
        self.elsewhere: list[str] = []
        page.set_default_timeout(WAIT_MS)
        expect.set_options(timeout=WAIT_MS)
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.loud.append(str(error)))
        page.on("request", lambda request: self._see(request.url))

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.loud.append(text)

    def _see(self, url: str) -> None:
        if not url.startswith((f"{self.server.origin}/", f"blob:{self.server.origin}/")):
            self.elsewhere.append(url)

    def open(self, query: str = "") -> None:
        """The page of this address, once it has asked what is served."""
        self.page.goto(f"{self.server.origin}/{query}")
        expect(self.one("#state")).not_to_have_text("Loading")

    def make(self) -> None:
        self.page.get_by_role("button", name="Make images").click()
        self.wait_made()

    def wait_made(self) -> None:
        """Until all that was asked for is there."""
        expect(self.one("#sheet")).to_be_visible()
        expect(self.one(".cell:empty")).to_have_count(0)

    def one(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def words(self, selector: str) -> str:
        return self.one(selector).inner_text()

    def alts(self, pane: int = 0) -> list[str]:
        """What a screen reader says of the pictures, in their order."""
        images = self.one(".pane").nth(pane).locator(".picture img")
        return images.evaluate_all("images => images.map(image => image.alt)")

    def pixels(self, pane: int = 0) -> list[list[int]]:
        """Of each picture, RGBA row by row, as the browser has decoded them."""
        images = self.one(".pane").nth(pane).locator(".picture img")
        return images.evaluate_all(
            """images => Promise.all(images.map(async image => {
                await image.decode();
                const canvas = document.createElement("canvas");
                [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
                const context = canvas.getContext("2d");
                context.drawImage(image, 0, 0);
                return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
            }))"""
        )

    def focused(self) -> str:
        """The id of what has the focus, or its class."""
        return self.page.evaluate("document.activeElement.id || document.activeElement.className")

    def check_quiet(self, refused: bool) -> None:
        """Nothing left the origin, nothing failed; with ``refused`` the server may say no."""
        answer = "Failed to load resource"
        assert [text for text in self.loud if not (refused and text.startswith(answer))] == []
        assert self.elsewhere == []
