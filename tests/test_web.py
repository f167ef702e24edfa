"""The page for browsers, in a headless Chromium, and the engine and its kernels in WebAssembly."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import engine_files
import numpy as np
import numpy.typing as npt
import pytest
from conftest import PATIENCE, ROOT

from bench import browser as headless
from storyllamas.engine.engine import Engine
from storyllamas.engine.options import DEFAULTS
from storyllamas.errors import UserError

pytest.importorskip("selenium", reason="needs selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

CONFIG = engine_files.small_config(dim=72, head_dim=20, hidden=150, context=120)
VOCABULARY = CONFIG.vocab_size
PROMPT = "ab a"
PREFIX = "some/where"
"""The folder of the server that has the page: it must work under any address."""

MAX_MODULE_BYTES = 200_000
TYPES = ("f32", "q8", "q4")

EXPORTED_OPTIONS = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "repetition_window",
    "seed", "max_tokens",
)  # fmt: skip


def call(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- What the tests need -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compile_wasm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes a WebAssembly file of csrc/Makefile."""
    folder = tmp_path_factory.mktemp("wasm")
    probe = folder / "probe.c"
    probe.write_text("#include <stdlib.h>\nint main(void) { return malloc(1) == NULL; }\n")
    command = ["clang", "--target=wasm32-wasi", "-nodefaultlibs", "-lc", probe, "-o", folder / "p"]
    if not shutil.which("clang") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs clang, lld and wasi-libc")

    def compiled(name: str) -> Path:
        call("make", "-C", ROOT / "csrc", f"BUILD={folder}", "CFLAGS=-O1 -Werror", folder / name)
        return folder / name

    return compiled


@pytest.fixture(scope="module")
def module(compile_wasm: Callable[[str], Path]) -> Path:
    compile_wasm("engine-threads.wasm")
    return compile_wasm("engine.wasm")


def random_logits(last: int) -> npt.NDArray[np.float32]:
    """Return logits after a token that seldom end a story."""
    row = np.random.default_rng(last).normal(0, 2, VOCABULARY).astype(np.float32)
    row[[engine_files.BOS, engine_files.EOS]] = -2
    return row


def alternating_logits(last: int) -> npt.NDArray[np.float32]:
    """Return logits that let two words take turns without an end."""
    row = np.zeros(VOCABULARY, np.float32)
    row[engine_files.word_id(int(last == engine_files.word_id(0)))] = 50
    return row


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write small models of each weight type.

    In "q8", the inputs of each matrix are whole numbers after quantization. So two engines differ
    by the rounding of a sum only, and generate the same tokens. "random-q8" has random weights.
    """
    folder = tmp_path_factory.mktemp("models")
    tensors = engine_files.random_tensors(CONFIG, 5)
    paths = {}
    for name in TYPES:
        path = folder / f"{name}.slm"
        paths[name] = engine_files.write_chain(path, random_logits, None, 120, name)
        path = folder / f"random-{name}.slm"
        paths[f"random-{name}"] = engine_files.write(path, CONFIG, tensors, None, name)
    paths["long"] = engine_files.write_chain(folder / "long.slm", alternating_logits, None, 200_000)
    return paths


class Site(headless.Site):
    """The page on a local server, in a folder of it."""

    def __init__(self, root: Path, is_isolated: bool = False) -> None:
        super().__init__(root, is_isolated)
        self.folder = root / PREFIX
        self.address += f"{PREFIX}/"


def make_site(root: Path, module: Path, models: dict[str, Path], is_isolated: bool = False) -> Site:
    folder = root / PREFIX
    folder.parent.mkdir(parents=True)
    call("python3", ROOT / "web" / "build.py", module, folder, *models.values())
    return Site(root, is_isolated)


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, module: Path, models: dict[str, Path]
) -> Iterator[Site]:
    made = make_site(tmp_path_factory.mktemp("site"), module, models)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with ExitStack() as stack:
        try:
            driver = stack.enter_context(headless.open_browser())
        except UserError as error:
            pytest.skip(str(error))
        driver.set_window_size(1200, 900)
        driver.set_script_timeout(PATIENCE)
        yield driver


class Page:
    """The page in the browser."""

    def __init__(self, browser: Any, site: Site) -> None:
        self.browser = browser
        self.site = site

    def open(self, fragment: str = "") -> None:
        self.browser.get("about:blank")
        self.browser.get(f"{self.site.address}{fragment}")
        self.wait_for("The model is ready.")

    def find(self, name: str) -> Any:
        return self.browser.find_element(By.ID, name)

    def text(self, name: str) -> str:
        text: str = self.find(name).get_property("textContent")
        return text

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds."""
        WebDriverWait(self.browser, PATIENCE, 0.02).until(lambda _: condition())

    def wait_for(self, status: str) -> None:
        """Wait for a status, or fail with the error that the page shows instead."""

        def is_there() -> bool:
            assert not self.text("alert"), self.text("alert")
            return self.text("status").startswith(status)

        self.wait(is_there)

    def wait_for_alert(self, part: str) -> None:
        """Wait until the page shows an error with this part."""
        self.wait(lambda: part in self.text("alert"))

    def choose(self, model: str) -> None:
        select = Select(self.find("model"))
        if select.first_selected_option.get_attribute("value") != model:
            self.browser.execute_script("document.getElementById('status').textContent = ''")
            select.select_by_value(model)
            self.wait_for("The model is ready.")

    def set(self, **values: object) -> None:
        """Set controls as a user does: the value changes and an event says so."""
        self.browser.execute_script(
            """for (const [id, value] of Object.entries(arguments[0])) {
                const input = document.getElementById(id);
                input.value = value;
                input.dispatchEvent(new Event("input", { bubbles: true }));
            }""",
            {name: str(value) for name, value in values.items()},
        )

    def write(self, button: str = "write") -> str:
        """Click a button that starts a story, and return the story without its prompt."""
        self.browser.execute_script("document.getElementById('status').textContent = ''")
        self.find(button).click()
        self.wait_for("The")
        return self.story()

    def story(self) -> str:
        return "".join(self.tokens())

    def tokens(self) -> list[str]:
        tokens: list[str] = self.browser.execute_script(
            "return [...document.querySelectorAll('#story .token')].map((e) => e.textContent)"
        )
        return tokens

    def run(self, script: str, *arguments: object) -> Any:
        """Run the body of an asynchronous function in the page, and return what it returns."""
        return headless.run(self.browser, script, *arguments)

    def drop(self, name: str, data: bytes) -> None:
        self.browser.execute_script(
            """const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(arguments[1])], arguments[0]));
            document.body.dispatchEvent(new DragEvent("drop",
                { dataTransfer: transfer, bubbles: true, cancelable: true }));""",
            name,
            [*data],
        )


@pytest.fixture
def page(browser: Any, site: Site) -> Page:
    opened = Page(browser, site)
    opened.open()
    return opened


# ---- The module ----------------------------------------------------------------------------------

RUN_WASI = """
import { readFile } from "node:fs/promises";
import { WASI } from "node:wasi";
const [path, rounds] = process.argv.slice(2);
const wasi = new WASI({ version: "preview1", args: [path, rounds], returnOnExit: true });
const module = await WebAssembly.compile(await readFile(path));
process.exitCode = wasi.start(await WebAssembly.instantiate(module, wasi.getImportObject()));
"""


def test_kernels_are_their_definitions(compile_wasm: Callable[[str], Path], tmp_path: Path) -> None:
    if not shutil.which("node"):
        pytest.skip("needs node")
    program = tmp_path / "run.mjs"
    program.write_text(RUN_WASI)
    lines = call("node", "--no-warnings", program, compile_wasm("kernels.wasm"), 30).splitlines()
    assert {line.split()[0] for line in lines} == {"wasm", "scalar"}


def test_the_module_is_small_and_asks_for_little(page: Page, module: Path) -> None:
    for path in (module, module.with_name("engine-threads.wasm")):
        assert path.stat().st_size < MAX_MODULE_BYTES
    imports = page.run(
        """const response = await fetch("engine.wasm");
        const module = await WebAssembly.compile(await response.arrayBuffer());
        return WebAssembly.Module.imports(module).map((each) => each.name);"""
    )
    assert {*imports} <= {"clock_time_get", "fd_close", "fd_fdstat_get", "fd_seek", "fd_write"}


GENERATE = """
    const { Engine } = await import("./engine.js");
    const engine = await Engine.load("engine.wasm");
    const [model, prompt, options] = args;
    const info = engine.open(await (await fetch(`models/${model}.slm`)).arrayBuffer());
    return { info, tokens: [...engine.generate(prompt, options, 5)] };
"""


@pytest.mark.parametrize("name", TYPES)
def test_ids_are_the_native_engines(page: Page, models: dict[str, Path], name: str) -> None:
    engine = Engine(models[name], kernels="scalar", threads=1)
    for options in ({"temperature": 0}, {"seed": 7}, {"temperature": 1.5, "top_p": 1, "seed": 8}):
        answer = page.run(GENERATE, name, PROMPT, options)
        tokens = answer["tokens"]
        story = engine.generate(PROMPT, **options)  # type: ignore[arg-type]
        text = "".join(story)
        ids = [token["id"] for token in tokens if token["id"] >= 0]
        assert ids[: len(story.ids)] == story.ids
        assert len(ids) <= len(story.ids) + 1  # with EOS
        assert "".join(token["text"] for token in tokens) == text
        assert tokens[-1]["stop"] == story.stop
        assert answer["info"]["kernels"] == "wasm"


@pytest.mark.parametrize("name", TYPES)
def test_probabilities_are_the_native_engines(
    page: Page, models: dict[str, Path], name: str
) -> None:
    path = models[f"random-{name}"]
    tokens = page.run(GENERATE, path.stem, PROMPT, {"seed": 9, "temperature": 1})["tokens"]
    bound = 1e-4 if name == "f32" else 5e-2  # a rounded activation may fall to the other side
    check_probabilities(Engine(path, kernels="scalar"), tokens, bound)


def check_probabilities(engine: Engine, tokens: list[dict[str, Any]], bound: float) -> None:
    """Compare the probabilities of tokens with those of the native engine's logits."""
    generated = [token for token in tokens if token["id"] >= 0]
    ids = [engine.bos_id, *engine.encode(PROMPT), *(token["id"] for token in generated[:-1])]
    logits = engine.logits(ids)[-len(generated) :].astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = weights / weights.sum(axis=1, keepdims=True)
    for token, row in zip(generated, expected, strict=True):
        assert abs(token["probability"] - row[token["id"]]) < bound
        shares = [each["probability"] for each in token["alternatives"]]
        assert shares == sorted(shares, reverse=True)
        assert np.abs(np.sort(row)[:-6:-1] - shares).max() < bound
        for each in token["alternatives"]:
            assert abs(each["probability"] - row[each["id"]]) < bound


def test_the_defaults_are_the_engines(page: Page) -> None:
    script = """const { DEFAULTS } = await import("./engine.js");
        return { ...DEFAULTS, seed: Number(DEFAULTS.seed) };"""
    expected = {name: DEFAULTS[name] for name in EXPORTED_OPTIONS}
    assert page.run(script) == pytest.approx(expected)


def test_a_browser_without_simd_is_told(page: Page) -> None:
    script = """const { Engine } = await import("./engine.js");
        WebAssembly.validate = () => false;
        return Engine.load("engine.wasm").catch((error) => error.message);"""
    message = "This browser does not run WebAssembly SIMD: use Chrome or Edge from 91"
    assert page.run(script).startswith(message)


# ---- The page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TYPES)
def test_the_page_writes_the_native_engines_story(
    page: Page, models: dict[str, Path], name: str
) -> None:
    page.choose(name)
    page.set(prompt=PROMPT, seed=7, temperature=1.2, top_p=0.95, top_k=40, min_p=0.05)
    page.set(repetition_penalty=1.1, max_tokens=60)
    engine = Engine(models[name], kernels="scalar", threads=1)
    expected = engine.generate(
        PROMPT, seed=7, temperature=1.2, top_p=0.95, top_k=40, min_p=0.05,
        repetition_penalty=1.1, max_tokens=60,
    )  # fmt: skip
    assert page.write() == "".join(expected)
    assert page.text("story").startswith(PROMPT)
    assert re.match(r"\d+ tokens, [\d,]+ tokens a second", page.text("speed"))
    assert name in page.text("model-info")


def test_an_empty_seed_is_random_and_can_be_kept(page: Page) -> None:
    page.set(prompt=PROMPT, temperature=1.5, top_p=1, seed="")
    first, first_seed = page.write(), page.text("used-seed")
    second, second_seed = page.write("again"), page.text("used-seed")
    assert first_seed != second_seed
    assert first != second
    page.find("keep-seed").click()
    assert page.write("again") == second
    assert page.text("used-seed") == second_seed


def test_a_story_can_be_stopped(page: Page) -> None:
    page.choose("long")
    page.set(max_tokens=1_000_000)
    page.find("write").click()
    page.wait(page.tokens)
    page.find("stop").click()
    page.wait_for("You stopped the story.")
    written = len(page.tokens())
    assert 0 < written < 199_000
    assert page.find("write").is_enabled()
    page.set(max_tokens=5)
    page.write()
    assert page.text("status").startswith("The story has reached its largest length.")
    assert len(page.tokens()) == 5


def test_the_story_and_a_link_can_be_copied(page: Page) -> None:
    page.browser.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    page.choose("q8")
    page.set(prompt='a b\n"&#é', temperature=1.25, top_k=9, seed="")
    story = page.write()
    page.find("copy").click()
    page.wait_for("The story is copied.")
    assert page.run("return navigator.clipboard.readText();") == 'a b\n"&#é' + story
    page.find("link").click()
    page.wait_for("The link is copied.")
    link = page.run("return navigator.clipboard.readText();")
    assert link == page.browser.current_url
    page.open()
    page.open(link.removeprefix(page.site.address))
    assert page.find("prompt").get_property("value") == 'a b\n"&#é'
    assert Select(page.find("model")).first_selected_option.get_attribute("value") == "q8"
    assert page.write() == story


def test_a_file_is_dropped_or_chosen(page: Page, models: dict[str, Path]) -> None:
    good = models["f32"].read_bytes()
    page.drop("damaged.slm", good[:500] + bytes([good[500] ^ 1]) + good[501:])
    page.wait_for_alert("Weight file damaged.slm is damaged: its checksum does not match")
    page.drop("notes.txt", b"Once upon a time")
    page.wait_for_alert("notes.txt is not a StoryLlamas weight file: ")
    page.browser.execute_script("document.getElementById('status').textContent = ''")
    page.find("file").send_keys(str(models["f32"]))
    page.wait_for("The model is ready.")
    assert "f32.slm (your file)" in page.text("model")
    page.set(prompt=PROMPT, temperature=0, max_tokens=20)
    expected = Engine(models["f32"], kernels="scalar").generate(
        PROMPT, temperature=0, max_tokens=20
    )
    assert page.write() == "".join(expected)


def test_a_wrong_value_is_one_sentence(page: Page) -> None:
    for name, value, message in (
        ("seed", "a", "The seed is a and must be a whole number from 0 to 18446744073709551615."),
        ("top_k", "-1", "Top-k must be a number from 0 to 1000000."),
    ):
        page.set(**{name: value})
        page.find("write").click()
        page.wait_for_alert(message)
        page.set(**{name: "0"})
    page.set(prompt="a " * 200)
    page.find("write").click()
    page.wait_for_alert("give a shorter prompt")


def test_alternatives_show_under_pointer_and_keyboard(page: Page) -> None:
    page.set(prompt=PROMPT, temperature=1.5, top_p=1, seed=3, max_tokens=30)
    page.write()
    details = page.find("details")
    words = [
        each
        for each in page.browser.find_elements(By.CSS_SELECTOR, "#story .token")
        if each.get_property("textContent").strip()
    ]
    ActionChains(page.browser).move_to_element(words[3]).perform()
    page.wait(details.is_displayed)
    assert words[3].get_attribute("aria-describedby") == "details"
    shares = [
        float(each.text.removesuffix(" %"))
        for each in details.find_elements(By.CLASS_NAME, "share")
    ]
    assert len(shares) in (5, 6)
    assert sum(shares) < 100.5
    chosen = details.find_element(By.CSS_SELECTOR, ".chosen .piece").text
    assert chosen == words[3].get_property("textContent").replace(" ", "␣").replace("\n", "⏎")
    ActionChains(page.browser).move_to_element(page.find("prompt")).perform()
    page.wait(lambda: not details.is_displayed())

    def focused() -> str:
        script = """const all = [...document.querySelectorAll("#story .token")];
            return all.indexOf(document.activeElement);"""
        return str(page.browser.execute_script(script))

    page.find("link").send_keys(Keys.TAB)
    assert focused() == "0"
    for key, index in ((Keys.ARROW_RIGHT, "1"), (Keys.ARROW_RIGHT, "2"), (Keys.ARROW_LEFT, "1")):
        page.browser.switch_to.active_element.send_keys(key)
        assert focused() == index
        assert details.is_displayed()
    page.browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not details.is_displayed()
    page.browser.switch_to.active_element.send_keys(Keys.TAB)
    assert page.browser.switch_to.active_element.get_attribute("id") == "keep-seed"


# ---- Accessibility -------------------------------------------------------------------------------

CONTRASTS = """
    const channels = (color) => color.match(/[\\d.]+/g).map(Number)
        .map((c, i) => (color.startsWith("color(srgb") && i < 3 ? 255 * c : c));
    const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const background = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const color = channels(getComputedStyle(e).backgroundColor);
            if (color.length < 4 || color[3] > 0) return color;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const hasText = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
        const isShown = element.checkVisibility() && !element.closest(".hidden, noscript, #drop");
        if (!hasText && !element.matches("input:not([type=range]), select, textarea")) continue;
        if (!isShown || element.matches(":disabled, option")) continue;
        const [a, b] = [channels(getComputedStyle(element).color), background(element)]
            .map(luminance).sort((x, y) => y - x);
        const name = `${element.tagName} ${element.id} ${element.className}`;
        found.push([name, (a + 0.05) / (b + 0.05)]);
    }
    return found;
"""

NAMELESS = """
    const visible = (e) => e.checkVisibility();
    const name = (e) => e.labels?.length ? e.labels[0].textContent
        : e.getAttribute("aria-label") ?? e.textContent;
    return [...document.querySelectorAll("input, select, textarea, button, [role=img]")]
        .filter((e) => visible(e) && !name(e).trim()).map((e) => e.outerHTML);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page: Page, scheme: str) -> None:
    page.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {
            "features": [
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ]
        },
    )
    page.set(max_tokens=10)
    page.write()
    page.browser.execute_script(
        """document.querySelector("#story .token").focus();
        const alert = document.getElementById("alert");
        [alert.textContent, alert.hidden] = ["Wrong.", false];"""
    )
    ratios = page.browser.execute_script(CONTRASTS)
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert {"alert", "meaning", "token", "share", "prompt"} <= {
        word for name, _ in ratios for word in name.split()
    }
    assert [(name, ratio) for name, ratio in ratios if ratio < 4.5] == []


def test_every_control_has_a_name_and_the_end_is_announced(page: Page) -> None:
    page.write()
    assert page.browser.execute_script(NAMELESS) == []
    assert page.find("status").get_attribute("role") == "status"
    assert page.find("alert").get_attribute("role") == "alert"
    script = """return [...document.querySelectorAll("[aria-describedby], [aria-labelledby]")]
        .flatMap((e) => [e.getAttribute("aria-describedby"), e.getAttribute("aria-labelledby")])
        .filter((id) => id && !document.getElementById(id));"""
    assert page.browser.execute_script(script) == []
    announced = page.browser.execute_script(
        """const written = [];
        new MutationObserver(() => written.push(status.textContent))
            .observe(document.getElementById("status"), { childList: true });
        window.announced = written;
        return written;"""
    )
    assert announced == []
    page.set(max_tokens=100)
    page.find("write").click()
    page.wait_for("The")
    count = page.browser.execute_script("return window.announced.length")
    assert count <= 3  # that it writes and that it has ended, not every token


def test_a_phone_does_not_scroll_sideways(page: Page) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.set(prompt="a" * 60, max_tokens=50)
        page.write()
        tokens = page.browser.find_elements(By.CSS_SELECTOR, "#story .token")
        for index in (0, len(tokens) // 2, len(tokens) - 1):
            page.browser.execute_script("arguments[0].focus()", tokens[index])
            width = page.browser.execute_script("return document.documentElement.scrollWidth")
            assert width <= 360
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# ---- Network -------------------------------------------------------------------------------------


def test_the_page_asks_no_other_host(page: Page) -> None:
    for name in ("performance", "browser"):
        page.browser.get_log(name)  # discards what is there
    page.open()
    page.write()
    messages = [
        json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")
    ]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.startswith(page.site.address) for url in urls)
    ours = (page.site.address, "data:", "about:", "blob:")
    assert [url for url in urls if not url.startswith(ours)] == []
    errors = [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


def test_it_works_without_a_network_after_the_first_visit(
    browser: Any, tmp_path: Path, module: Path, models: dict[str, Path]
) -> None:
    site = make_site(tmp_path, module, {"q8": models["q8"]})
    page = Page(browser, site)
    page.open()
    page.set(prompt=PROMPT, seed=5, max_tokens=20)
    story = page.write()
    page.run("await navigator.serviceWorker.ready;")
    site.stop()
    page.open()
    page.set(prompt=PROMPT, seed=5, max_tokens=20)
    assert page.write() == story


def test_old_models_are_forgotten(
    browser: Any, tmp_path: Path, module: Path, models: dict[str, Path]
) -> None:
    site = make_site(tmp_path, module, {"q8": models["q8"]})
    # A browser takes a file as good for a tenth of its age if the server does not say how long.
    for path in (site.folder / "models").iterdir():
        os.utime(path, (0, 0))
    page = Page(browser, site)
    page.open()
    kept = """const cache = await caches.open("storyllamas-models");
        return (await cache.keys()).map((each) => each.url);"""
    (first,) = page.run(kept)
    assert "q8.slm" in first
    call("python3", ROOT / "web" / "build.py", module, site.folder, models["q4"])
    page.open()
    page.wait(lambda: ["q4.slm" in url for url in page.run(kept)] == [True])
    site.stop()


# ---- Threads -------------------------------------------------------------------------------------

COMPARE_THREADS = """
    import { countThreads, Engine } from "./engine.js";
    onmessage = async ({ data: [model, prompt, options] }) => {
        const weights = await (await fetch(`models/${model}.slm`)).arrayBuffer();
        const one = await Engine.load("engine.wasm");
        const three = await Engine.loadThreaded("engine-threads.wasm", 3);
        one.open(weights);
        const { threads } = three.open(weights, model, 3);
        const stories = [one, three].map((engine) => [...engine.generate(prompt, options, 5)]);
        postMessage({ count: countThreads(), threads, stories });
    };
"""

RUN_WORKER = """
    const worker = new Worker("compare.js", { type: "module" });
    return new Promise((resolve, reject) => {
        worker.onerror = (event) => reject(new Error(event.message));
        worker.onmessage = ({ data }) => {
            worker.terminate();
            resolve(data);
        };
        worker.postMessage(args.slice(0, 3));
    });
"""


def test_threads_change_nothing_but_the_speed(
    browser: Any, page: Page, tmp_path: Path, module: Path, models: dict[str, Path]
) -> None:
    """An isolated page uses threads, without a network too. The page of the other tests has one."""
    assert not page.run("return crossOriginIsolated")
    assert "threads" not in page.text("model-info")
    used = {name: models[name] for name in ("q8", "random-q4")}
    site = make_site(tmp_path, module, used, is_isolated=True)
    (site.folder / "compare.js").write_text(COMPARE_THREADS)
    isolated = Page(browser, site)
    isolated.open("#model=q8")
    answer = isolated.run(RUN_WORKER, "random-q4", PROMPT, {"seed": 4, "temperature": 1})
    one, three = answer["stories"]
    assert len(one) > 50
    assert three == one
    assert answer["threads"] == 3
    cores = isolated.run("return navigator.hardwareConcurrency")
    assert answer["count"] == min(cores, 4)
    expected = "".join(Engine(models["q8"], kernels="scalar").generate(PROMPT, seed=7))
    isolated.run("await navigator.serviceWorker.ready;")
    for _ in range(2):
        assert (f"up to {answer['count']} threads" in isolated.text("model-info")) == (cores > 1)
        isolated.choose("q8")
        isolated.set(prompt=PROMPT, seed=7, max_tokens=256)
        assert isolated.write() == expected
        site.stop()
        isolated.open("#model=q8")


# ---- Documentation -------------------------------------------------------------------------------


def test_the_example_of_the_documentation_runs(
    browser: Any, site: Site, models: dict[str, Path]
) -> None:
    (example,) = re.findall(
        r"^```html\n(.*?)^```$", (ROOT / "docs/web.md").read_text(), re.M | re.S
    )
    example = example.replace("2m-q8.slm", "q8.slm")
    (site.folder / "embedded.html").write_text(example)
    browser.get(f"{site.address}embedded.html")
    expected = "".join(Engine(models["q8"], kernels="scalar").generate("Once upon a time", seed=7))
    script = "return document.body.textContent"
    Page(browser, site).wait(lambda: expected in browser.execute_script(script))
