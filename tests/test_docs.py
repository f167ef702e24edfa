"""README.md, CONTRIBUTING.md and docs/ name only what exists, and their examples run."""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import engine_files
import pytest
import yaml
from conftest import ROOT
from dvc.cli import DvcParserError
from dvc.cli import parse_args as parse_dvc

from storyllamas import cli, params
from storyllamas.errors import UserError
from storyllamas.experiments.run import apply_changes

PATHS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
COMMAND_C = (ROOT / "csrc/program/command.c").read_text()

FOREIGN_WORDS = {"PIP_EXTRA_INDEX_URL"}
"""Identifiers of other programs that the code does not contain."""

BUILT = (".venv", ".storyllamas", "build", "csrc/build")
"""Folders that exist only after a build or a run."""

USERS_PATHS = {"data/train-00000-of-00004.parquet"}
"""Paths within a user's own folder."""


@dataclass(frozen=True)
class Page:
    """A page of Markdown."""

    path: Path
    text: str

    def code(self, language: str) -> list[str]:
        """Return the code blocks of a language."""
        pattern = rf"^```{language}\n(.*?)^```$"
        return re.findall(pattern, self.text, re.MULTILINE | re.DOTALL)

    @property
    def prose(self) -> str:
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    @property
    def spans(self) -> list[str]:
        """Return the code spans of the prose."""
        return re.findall(r"`([^`\n]+)`", self.prose)

    @property
    def commands(self) -> list[list[str]]:
        """Return the words of the commands in shell blocks."""
        return [words for block in self.code("bash") for words in shell_words(block)]


def shell_words(block: str) -> Iterator[list[str]]:
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words := words[sum(bool(re.match(r"[A-Z_]+=", word)) for word in words[:1]) :]:
            yield words


PAGES = [Page(path, path.read_text()) for path in PATHS]
NAMES = [path.relative_to(ROOT).as_posix() for path in PATHS]


@cache
def repository() -> frozenset[str]:
    """Return the paths of all files that git knows or would add, and of their folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = {name for name in listed.splitlines() if (ROOT / name).exists()}
    folders = {str(folder) for name in files for folder in Path(name).parents} - {"."}
    return frozenset(files | folders)


@cache
def words_of_the_code() -> frozenset[str]:
    """Return every word in the files that are not prose."""
    kinds = (".py", ".c", ".h", ".yaml", ".toml", ".json", ".csv", ".txt", "Makefile")
    files = [name for name in repository() if name.endswith(kinds) and "test_docs" not in name]
    texts = [(ROOT / name).read_text() for name in files]
    return frozenset(word for text in texts for word in re.findall(r"\w+", text))


# ---- Links and paths -----------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def links(page: Page) -> list[tuple[Path, str]]:
    """Return the file and the anchor of each link into the repository."""
    targets = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.prose)
    parts = [target.partition("#") for target in targets]
    return [
        ((page.path.parent / name).resolve() if name else page.path, anchor)
        for name, _, anchor in parts
    ]


def wrong_links(page: Page) -> Iterator[str]:
    for path, anchor in links(page):
        if not path.is_relative_to(ROOT) or path.relative_to(ROOT).as_posix() not in repository():
            yield f"link to {path}"
        elif anchor and anchor not in anchors(path):
            yield f"anchor {anchor} in {path.name}"


@cache
def outputs() -> list[str]:
    """Return patterns of the paths that the stages write."""
    kinds = ("outs", "metrics", "plots")
    entries = [out for stage in STAGES.values() for kind in kinds for out in stage.get(kind, [])]
    paths = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
    return [re.sub(r"\$\{[\w.]+\}", "(SIZE|[0-9]+m)", path) for path in paths]


def exists(path: str) -> bool:
    """Return whether a path is in the repository, or comes from a build or a stage."""
    if path in repository() or path in USERS_PATHS:
        return True
    made = [*map(re.escape, BUILT), *outputs()]
    return any(re.match(rf"({each})(/|$)", path) for each in made)


def wrong_paths(page: Page) -> Iterator[str]:
    tops = {name.split("/")[0] for name in repository()} | {"data", "models"}
    bare = {name.rpartition("/")[2] for name in repository()}
    for word in [*page.spans, *(word for words in page.commands for word in words)]:
        path = word.removesuffix("/")
        if "/" in path and re.fullmatch(r"[\w./-]+", path) and path.split("/")[0] in tops:
            if not exists(path):
                yield f"path {path}"
        elif re.fullmatch(r"[\w-]+\.(py|h|yaml|toml|cff)", path) and path not in bare:
            yield f"file {path}"


def wrong_trees(page: Page) -> Iterator[str]:
    """Check trees: each line is a name and a description, indented if it is in the last folder."""
    for tree in page.code("text"):
        folder = ""
        for line in tree.splitlines():
            name = line.split()[0].removesuffix("/")
            path = f"{folder}/{name}" if line.startswith(" ") else name
            folder = folder if line.startswith(" ") else name
            if path not in repository():
                yield f"path {path} in a tree"


# ---- Words ---------------------------------------------------------------------------------------


def has_key(name: str) -> bool:
    """Return whether params.yaml has a key, given by its full name."""
    values = PARAMS
    for key in name.split("."):
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def wrong_words(page: Page) -> Iterator[str]:
    """Check keys of params.yaml, modules, options and identifiers in code spans of the prose."""
    known = words_of_the_code() | FOREIGN_WORDS
    for span in page.spans:
        name = re.split(r"[(:= ]", span)[0]
        first = name.partition(".")[0]
        if (
            re.fullmatch(r"[a-z_]+(\.[a-z0-9_]+)+(?<!\.txt)(?<!\.bin)(?<!\.model)(?<!\.json)", name)
            and first in PARAMS
        ):
            if not has_key(name):
                yield f"key {name} of params.yaml"
        elif re.fullmatch(r"(storyllamas|stages|bench)(\.\w+)+", name):
            if not is_module(name):
                yield f"module {name}"
        elif re.fullmatch(r"--[\w-]+", name):
            if name not in all_options():
                yield f"option {name}"
        elif re.fullmatch(r"\w*[a-zA-Z]_\w+", name) and name not in known:
            yield f"identifier {name}"


# ---- Commands ------------------------------------------------------------------------------------


@cache
def subcommands() -> dict[str, argparse.ArgumentParser]:
    kind = argparse._SubParsersAction
    (action,) = (each for each in cli._parser()._actions if isinstance(each, kind))
    return action.choices


@cache
def options_of_run() -> set[str]:
    """Return the options of the C program."""
    shorts = re.search(r'shorts\[\] = "(.*)"', COMMAND_C)
    assert shorts
    longs = re.findall(r'\{"([\w-]+)", (?:no|required)_argument', COMMAND_C)
    return {f"-{short}" for short in shorts[1] if short != ":"} | {f"--{long}" for long in longs}


@cache
def all_options() -> set[str]:
    """Return the options of the project's programs."""
    ours = {option for parser in subcommands().values() for option in parser._option_string_actions}
    return ours | options_of_run()


def wrong_make(arguments: list[str]) -> Iterator[str]:
    folder = ROOT
    if arguments[:1] == ["-C"]:
        folder, arguments = ROOT / arguments[1], arguments[2:]
    text = (folder / "Makefile").read_text()
    for word in arguments:
        variable, is_variable, _ = word.partition("=")
        pattern = rf"\b{variable}\b" if is_variable else rf"^{re.escape(word)}:"
        if not re.search(pattern, text, re.MULTILINE):
            yield f"make {word}"


def wrong_dvc(arguments: list[str]) -> Iterator[str]:
    try:
        parsed = parse_dvc(arguments)
    except DvcParserError:
        yield f"dvc {shlex.join(arguments)}"
        return
    for target in getattr(parsed, "targets", None) or []:
        stage, _, size = target.partition("@")
        if stage not in STAGES or size not in {"", *PARAMS["sizes"]}:
            yield f"stage {target}"
    changes = getattr(parsed, "set_param", None) or []
    together = {name: values[0] for name, values in map(values_of, changes) if has_key(name)}
    for change in changes:
        yield from wrong_change(change, together)


def values_of(change: str) -> tuple[str, list[object]]:
    """Return the key and the values of KEY=VALUE, or of KEY=VALUE,VALUE of a queue."""
    name, _, text = change.partition("=")
    values = [text] if text.startswith("[") else text.split(",")
    return name, [params.loads(value) for value in values]


def wrong_change(change: str, together: Mapping[str, object]) -> Iterator[str]:
    """Check a change as params.yaml is checked, with all changes of the command."""
    name, values = values_of(change)
    if not has_key(name):
        yield f"key {name} of params.yaml"
        return
    for value in values:
        try:
            params.parse(apply_changes(PARAMS, {**together, name: value}))
        except UserError as error:
            yield f"{change}: {error}"


def wrong_storyllamas(arguments: list[str]) -> Iterator[str]:
    message = io.StringIO()
    try:
        with redirect_stderr(message):
            cli._parser().parse_args(arguments)
    except SystemExit:
        yield message.getvalue().splitlines()[-1]


def wrong_run(arguments: list[str]) -> Iterator[str]:
    options = [word for word in arguments if re.match(r"--?[a-z]", word)]
    yield from (f"run {option}" for option in options if option not in options_of_run())


def wrong_pip(arguments: list[str]) -> Iterator[str]:
    project = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\[(\w+)\]", " ".join(arguments)):
        if not re.search(rf"^{extra} = \[", project, re.MULTILINE):
            yield f"extra {extra}"


PROGRAMS = {
    "make": wrong_make,
    "dvc": wrong_dvc,
    "storyllamas": wrong_storyllamas,
    "csrc/build/run": wrong_run,
    "pip": wrong_pip,
}


def wrong_commands(page: Page) -> Iterator[str]:
    for program, *arguments in page.commands:
        if program in PROGRAMS:
            yield from PROGRAMS[program](arguments)
        if "-m" in arguments and not is_module(arguments[arguments.index("-m") + 1]):
            yield f"module in {program} {shlex.join(arguments)}"


def wrong_commands_in_prose(page: Page) -> Iterator[str]:
    """Check commands that may be incomplete, such as `storyllamas export` without its arguments."""
    for span in page.spans:
        if not re.match(r"(make|dvc|storyllamas|pip|csrc/build/run|[A-Z_]+=\S+) ", span):
            continue
        for program, *arguments in shell_words(span):
            if program != "storyllamas":
                yield from PROGRAMS[program](arguments)
            elif arguments[0] not in subcommands():
                yield f"storyllamas {arguments[0]}"
            else:
                known = subcommands()[arguments[0]]._option_string_actions
                yield from (
                    f"{span}: {word}"
                    for word in arguments
                    if word.startswith("--") and word not in known
                )


CHECKS = (
    *(wrong_links, wrong_paths, wrong_trees, wrong_words),
    *(wrong_commands, wrong_commands_in_prose),
)


def wrongs(page: Page) -> list[str]:
    """Return the names on a page that do not exist."""
    return [wrong for check in CHECKS for wrong in check(page)]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_names_on_a_page_exist(page: Page) -> None:
    assert wrongs(page) == []


@pytest.mark.parametrize(
    "text",
    [
        "[a](nothing.md)",
        "[a](README.md#nothing)",
        "`storyllamas/nothing.py`",
        "`nothing.py`",
        "`data/nothing`",
        "`models/2m/nothing`",
        "```text\nstoryllamas/  the library\n  nothing/   a folder\n```",
        "`corpus.nothing`",
        "`train.nothing=1`",
        "`storyllamas.nothing`",
        "`--nothing`",
        "`sl_nothing`",
        "`no_thing: 1`",
        "`make nothing`",
        "`dvc repro nothing`",
        "`storyllamas nothing`",
        "`storyllamas generate --nothing`",
        "```bash\nmake nothing\n```",
        "```bash\nmake -C csrc nothing\n```",
        "```bash\nmake story NOTHING=1\n```",
        "```bash\ndvc nothing\n```",
        "```bash\ndvc repro --nothing\n```",
        "```bash\ndvc repro train@1m\n```",
        "```bash\ndvc exp run -S nothing=1\n```",
        "```bash\ndvc exp run --queue -S model=2m,1m\n```",
        "```bash\ndvc exp run -S train.learning_rate=fast\n```",
        "```bash\nstoryllamas nothing\n```",
        "```bash\nstoryllamas export --to nothing folder\n```",
        "```bash\nNAME=1 csrc/build/run --nothing\n```",
        "```bash\ncsrc/build/run model.slm -x 3\n```",
        "```bash\npip install -e '.[nothing]'\n```",
        "```bash\npython -m bench.nothing\n```",
    ],
)
def test_names_that_do_not_exist_are_found(text: str) -> None:
    assert wrongs(Page(ROOT / "page.md", f"{text}\n")) != []


def test_every_page_can_be_reached_from_the_readme() -> None:
    by_path = {page.path: page for page in PAGES}
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        new = {path for page in new for path, _ in links(by_path[page])} & set(by_path) - reached
    assert set(PATHS) - reached == set()


# ---- Examples ------------------------------------------------------------------------------------


def examples(language: str) -> list[object]:
    return [
        pytest.param(code, id=f"{name}-{index}")
        for page, name in zip(PAGES, NAMES, strict=True)
        for index, code in enumerate(page.code(language))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small weight files where the workflow writes those of 2m and 30m."""
    root = tmp_path_factory.mktemp("examples")
    config = engine_files.small_config()
    tensors = engine_files.random_tensors(config, 1)
    for size in ("2m", "30m"):
        exported = root / "models" / size / "export"
        exported.mkdir(parents=True)
        for name in ("f32", "q8", "q4"):
            engine_files.write(exported / f"{name}.slm", config, tensors, weight_type=name)
    return root


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the shared library."""
    build = tmp_path_factory.mktemp("library")
    command = ["make", "-C", ROOT / "csrc", "lib", f"BUILD={build}", "CFLAGS=-O0"]
    subprocess.run(command, check=True, capture_output=True)
    return build


def run(*command: object, folder: Path) -> str:
    """Return the output of a command; check that it succeeds and prints no message."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([*map(str, command)], check=False, **options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.mark.parametrize("code", examples("python"))
def test_python_examples_run(code: str, folder: Path) -> None:
    assert run(sys.executable, "-c", code, folder=folder)


@pytest.mark.parametrize("code", examples("c"))
def test_c_examples_compile_and_run(code: str, folder: Path, library: Path, tmp_path: Path) -> None:
    source, program = tmp_path / "story.c", tmp_path / "story"
    source.write_text(code)
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    links = [f"-L{library}", "-lstoryllamas", f"-Wl,-rpath,{library}"]
    run(os.environ.get("CC", "cc"), *strict, source, *links, "-o", program, folder=folder)
    assert run(program, folder=folder)
