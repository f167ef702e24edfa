"""The C program on its command line, and the library under sanitizers on damaged files."""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import engine_files
import pytest
from conftest import ROOT, made_once, make_engine
from engine_files import BOS, EOS, small_config, word_id

from storyllamas.engine.engine import CACHES, Engine, kernel_sets
from storyllamas.engine.options import DEFAULTS
from storyllamas.errors import UserError
from storyllamas.slm import weight_file
from storyllamas.slm.encoding import GROUP_SIZES
from storyllamas.slm.limits import MAXIMA

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def build(sanitized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the program and the library, and the program and the C tests with sanitizers."""

    def make(folder: Path) -> None:
        make_engine(folder, "CFLAGS=-O3 -Werror", "run")
        make_engine(folder, "CFLAGS=-O1 -Werror", "lib", "raced")
        (folder / "sanitized").symlink_to(sanitized)

    return made_once(tmp_path_factory, "c_program", make)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(context=120)
    path = tmp_path_factory.mktemp("model") / "m.slm"
    return engine_files.write(path, config, engine_files.random_tensors(config, 1))


@pytest.fixture(params=["run", "sanitized/run"])
def run(request: pytest.FixtureRequest, build: Path) -> Run:
    """Return a function that runs the program on arguments, plain and sanitized."""

    def call(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [str(build / request.param), *map(os.fsencode, map(str, arguments))]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", check=False, **options
        )  # type: ignore[call-overload, no-any-return]

    return call


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split()]


# ---- Generating ----------------------------------------------------------------------------------


def test_the_program_generates_the_story_of_the_library(run: Run, model: Path) -> None:
    story = Engine(model).generate("ab a", temperature=0.9, top_p=0.8, seed=3, max_tokens=50)
    text = "".join(story)
    options = ["--temperature", "0.9", "--top-p", "0.8", "--seed", 3, "--max-tokens", 50]
    done = run(model, *options, "ab a")
    assert (done.returncode, done.stdout) == (0, f"ab a{text}\n")
    assert done.stderr.startswith(f"{story.tokens} tokens after a prompt of {story.prompt_tokens}")
    assert done.stderr.endswith(f"stopped at {story.stop}\n")
    assert run("--prompt", "ab a", model, *options).stdout == done.stdout
    ids = [BOS, *Engine(model).encode("ab a"), *story.ids]
    assert numbers(run(model, *options, "--ids", "ab a").stdout) == ids


def test_types_of_the_cache(run: Run, model: Path) -> None:
    for cache in CACHES:
        story = Engine(model, cache=cache).generate("ab a", seed=3, max_tokens=10**6)
        text = "".join(story)
        done = run(model, "--cache", cache, "-s", 3, "-n", 0, "ab a")
        assert (done.returncode, done.stdout) == (0, f"ab a{text}\n")


def test_llama2c_options(run: Run, model: Path) -> None:
    ours = run(
        model, "--temperature", "0.7", "--top-p", "0.6", "--seed", 5, "--max-tokens", 30, "a"
    )
    theirs = run(model, *"-t 0.7 -p 0.6 -s 5 -n 30 -z tokenizer.bin -i a".split())
    assert theirs.stdout == ours.stdout
    whole = run(model, *"-t 1 -p 0 -n 0 -i a --ids".split())
    story = Engine(model).generate("a", temperature=1, top_p=1, max_tokens=10**6)
    assert len("".join(story)) > 0
    assert numbers(whole.stdout)[-story.tokens :] == story.ids


def test_a_prompt_from_a_file_or_standard_input(run: Run, model: Path, tmp_path: Path) -> None:
    """A byte order mark and one line break at its end do not count; all other bytes do."""
    path = tmp_path / "prompt.txt"
    for text in ("", "a\n\nb\n", "é\0a", "ab " * 30):
        expected = run(model, "--seed", 3, "-n", 5, text).stdout if "\0" not in text else None
        for end in ("\n", "\r\n"):
            path.write_bytes((text + end).encode())
            ran = run(model, "-s", 3, "-n", 5, "-f", path)
            assert ran.returncode == 0, ran.stderr
            assert ran.stdout.startswith(text)
            assert expected is None or ran.stdout == expected
            for option in (["-i", "-"], ["--prompt", "-"], ["-"], ["--prompt-file", "-"]):
                with path.open() as file:
                    piped = run(model, "-s", 3, "-n", 5, *option, stdin=file)
                assert (piped.returncode, piped.stdout) == (0, ran.stdout)
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
            assert run(model, "-s", 3, "-n", 5, "-f", path).stdout == ran.stdout
    ids = numbers(run(model, "--ids", "-n", 1, "-f", path).stdout)[:-1]
    assert ids == [BOS, *Engine(model).encode("ab " * 30)]


def test_prompt_files_that_are_rejected(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"caf\xe9")
    for arguments, sentence in (
        (["-f", path], "the text is not valid UTF-8 at byte 3 (0xe9)"),
        (["-f", tmp_path], f"{tmp_path} cannot be read: Is a directory"),
        (["-f", tmp_path / "none"], f"{tmp_path}/none cannot be read: No such file or directory"),
        (["-f", ""], "the name of the file with the prompt is empty: name a file"),
        (["-f", path, "a"], f'the prompt is given twice: "{path}" and "a"'),
        (["-i", "a", "-f", path], f'the prompt is given twice: "a" and "{path}"'),
    ):
        ran = run(model, *arguments)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr == f"error: {sentence}\n"
    if Path("/dev/zero").exists():
        endless = run(model, "-f", "/dev/zero").stderr
        assert endless.startswith("error: the prompt in /dev/zero has more than 67108864 bytes")


def test_a_random_seed_is_printed(run: Run, model: Path) -> None:
    seeds = set()
    for option in ("-s", "--seed"):
        ran = run(model, option, "random", "-n", 20, "a")
        line, _ = ran.stderr.splitlines()
        seeds.add(line.removeprefix("seed "))
        assert run(model, "--seed", line.removeprefix("seed "), "-n", 20, "a").stdout == ran.stdout
    assert len(seeds) == 2


def test_what_llama2c_has_and_this_program_has_not(run: Run, model: Path) -> None:
    assert run(model, *"-m generate -n 3 -i a".split()).stdout == run(model, "-n", 3, "a").stdout
    for arguments, sentence in (
        (["-m", "chat"], "use `storyllamas chat MODEL.slm`"),
        (["-m", "tell"], '-m is "tell" and must be generate'),
        (["-m", "chat", "-y", "Be kind."], "use `storyllamas chat MODEL.slm`"),
        (["-y", "Be kind."], "use `storyllamas chat MODEL.slm --system TEXT`"),
    ):
        ran = run(model, *arguments)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.startswith("error: -")
        assert ran.stderr.endswith(f"{sentence}\n")


def test_every_option_reaches_the_sampler(run: Run, model: Path) -> None:
    options = {"temperature": 1.5, "top_k": 9, "min_p": 0.05, "repetition_penalty": 1.3, "seed": 8}
    options |= {"repetition_window": 3}
    expected = Engine(model).generate("b", ignore_eos=True, **options)  # type: ignore[arg-type]
    assert "".join(expected)
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    given.append("--ignore-eos")
    done = run(model, *(text.replace("_", "-") for text in given), "--ids", "b")
    assert numbers(done.stdout)[expected.prompt_tokens :] == expected.ids


def test_stops_and_empty_prompts(run: Run, tmp_path: Path) -> None:
    words = [word_id(0), word_id(1), word_id(2)]
    path = engine_files.write_sequence(tmp_path / "m.slm", [BOS, *words, EOS])
    for prompt in ([], [""], ["--prompt", ""]):
        done = run(path, *prompt)
        assert (done.stdout, done.stderr.split()[-1]) == ("abab\n", "eos")
    assert run(path, "--max-tokens", 1).stderr.split()[-1] == "max_tokens"
    small = engine_files.write_sequence(tmp_path / "n.slm", [BOS, *words, EOS], context=3)
    assert run(small).stderr.split()[-1] == "context"


def test_help(run: Run) -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name, value in DEFAULTS.items():
        shown = rf"--{name.replace('_', '-')} [A-Z].*?\(({value:g})\)"
        if name == "logprobs":
            continue  # of the library alone
        if name == "ignore_eos":
            shown = "--ignore-eos "
        option = re.search(shown, done.stdout, re.S)
        assert option
        assert "--" not in option[0][2:]
    assert all(len(line) <= 96 for line in done.stdout.splitlines())


def test_info(run: Run, model: Path, tmp_path: Path) -> None:
    info = dict(line.split(maxsplit=1) for line in run(model, "--info").stdout.splitlines())
    config = small_config(context=120)
    assert info["parameters"] == str(config.parameters)
    assert (info["dim"], info["layers"], info["context"]) == ("24", "2", "120")
    assert info["weights"] == "f32"
    tensors = engine_files.random_tensors(config)
    sizes = {"q4": 16}
    q4 = engine_files.write(tmp_path / "q4.slm", config, tensors, None, "q4", sizes)
    shown = run(q4, "--info").stdout
    assert "weights       q4, a scale for 16 columns\n" in shown
    assert "embedding     q4, a scale for 16 columns\n" in shown
    assert "template" not in shown
    chat = with_chat(tmp_path / "chat.slm", "é {{ messages }}", (5, 9))
    shown = run(chat, "--info").stdout
    assert "extra eos     5 9\n" in shown
    assert "chat template 17 bytes\n" in shown


def test_bench(run: Run, model: Path) -> None:
    prompt, story = run(model, "--bench").stdout.splitlines()
    assert prompt.startswith("prompt of 60 tokens")
    assert story.startswith("story of 119 tokens")
    assert min(float(line.split()[-2]) for line in (prompt, story)) > 0


# ---- Invalid arguments ---------------------------------------------------------------------------

WHOLE = "and must be a whole number from"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-tokens", "0"], f'--max-tokens is "0" {WHOLE} 1 to 2147483647'),
        (["--max-tokens", "-5"], f'--max-tokens is "-5" {WHOLE} 1 to 2147483647'),
        (["--max-tokens", "99999999999999999999999"], "--max-tokens is"),
        (["--max-tokens", "1.5"], '--max-tokens is "1.5"'),
        (["--max-tokens", ""], '--max-tokens is ""'),
        (["--max-tokens", " 3"], '--max-tokens is " 3"'),
        (["--seed", "-1"], f'--seed is "-1" {WHOLE} 0 to 18446744073709551615'),
        (["--seed", "18446744073709551616"], "--seed is"),
        (["--top-k", "abc"], '--top-k is "abc"'),
        (["--temperature", "-1"], "temperature is -1 and must be 0 (greedy) to 1000"),
        (["--temperature", "nan"], '--temperature is "nan" and must be a number'),
        (["--temperature", "inf"], '--temperature is "inf" and must be a number'),
        (["--temperature", "1e999"], '--temperature is "1e999" and must be a number'),
        (["--temperature", "1e39"], "temperature is inf and must be 0 (greedy) to 1000"),
        (["--temperature", "abc"], '--temperature is "abc" and must be a number'),
        (["--temperature", "0x1"], '--temperature is "0x1" and must be a number'),
        (["--temperature", "1 "], '--temperature is "1 " and must be a number'),
        (["--temperature", ""], '--temperature is "" and must be a number'),
        (["--top-p", "0"], "top_p is 0 and must be above 0 and at most 1 (off)"),
        (["--top-p", "1.5"], "top_p is 1.5 and must be above 0 and at most 1 (off)"),
        (["--min-p", "1"], "min_p is 1 and must be at least 0 (off) and below 1"),
        (["--cache", "q4"], '--cache is "q4" and must be auto, f32, f16 or q8'),
        (["--cache", ""], '--cache is "" and must be auto, f32, f16 or q8'),
        (["--repetition-penalty", "0"], "repetition_penalty is 0 and must be above 0"),
        (["--prompt", "a", "b"], 'the prompt is given twice: "a" and "b"'),
        (["a", "b"], '"b" is one argument too many: put the prompt in quotes'),
        (["--colour"], "--colour is not an option; --help lists the options"),
        (["-x"], "-x is not an option; --help lists the options"),
        (["-xn", "5"], "-x is not an option; --help lists the options"),
        (["--help=yes"], "--help=yes is not an option; --help lists the options"),
        (["--seed"], "--seed needs a value; --help lists the options"),
        (["b" * 200], "the prompt has 202 tokens and the model's context is 120"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_arguments_out_of_range(run: Run, model: Path, arguments: list[str], message: str) -> None:
    done = run(model, *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_no_arguments(run: Run) -> None:
    done = run()
    assert done.returncode == 1
    assert done.stderr.startswith("error: no weight file is given: run MODEL.slm [PROMPT]")


def test_a_prompt_that_is_not_utf8(build: Path, model: Path) -> None:
    for program in ("run", "sanitized/run"):
        command = [build / program, model, b"caf\xe9 au lait"]
        done = subprocess.run(command, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr == b"error: the text is not valid UTF-8 at byte 3 (0xe9)\n"


def test_a_full_disk(model: Path, build: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w") as full:  # noqa: PTH123
        command = [build / "run", model, "a"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


# ---- Damaged files -------------------------------------------------------------------------------

FIELDS = {  # offset and format of each field of the header
    "version": (8, "I"), "header_bytes": (12, "I"), "file_bytes": (16, "Q"),
    "dim": (32, "I"), "layers": (36, "I"), "heads": (40, "I"), "kv_heads": (44, "I"),
    "head_dim": (48, "I"), "hidden": (52, "I"), "context": (56, "I"), "vocab_size": (60, "I"),
    "rope_theta": (64, "f"), "norm_eps": (68, "f"), "weight_type": (72, "I"),
    "group_size": (76, "I"), "unk_id": (80, "i"), "bos_id": (84, "i"), "eos_id": (88, "i"),
    "pad_id": (92, "i"), "flags": (96, "I"), "embedding_type": (100, "I"),
    "tokenizer_offset": (104, "Q"), "tokenizer_bytes": (112, "Q"), "tensors_offset": (120, "Q"),
    "tensors_bytes": (128, "Q"), "embedding_group_size": (136, "I"), "extra_eos_count": (180, "I"),
    "chat_template_bytes": (184, "Q"), "reserved": (200, "B"),
}  # fmt: skip
SIZE = small_config().vocab_size
SCORES, OFFSETS, TYPES = 256, 256 + 4 * SIZE, 256 + 8 * SIZE + 4
TEXT = 256 + 9 * SIZE + 4
TEXT_BYTES = sum(map(len, engine_files.make_vocabulary().pieces))


def changed(data: bytes, place: int, kind: str, value: float) -> bytes:
    bad = bytearray(data)
    struct.pack_into("<" + kind, bad, place, value)
    return engine_files.sealed(bad)


def with_field(data: bytes, name: str, value: float) -> bytes:
    return changed(data, *FIELDS[name], value)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return an undamaged file of each weight type."""
    folder = tmp_path_factory.mktemp("files")
    config = small_config(tied=False)
    tensors = engine_files.random_tensors(config)
    return {
        kind: engine_files.write(folder / "m.slm", config, tensors, None, kind).read_bytes()
        for kind in GROUP_SIZES
    }


def open_files(build: Path, folder: Path, contents: list[bytes], *options: str) -> list[str]:
    """Open files with the sanitized library; return "ok" or the error message of each."""
    paths = [folder / f"{index}.slm" for index in range(len(contents))]
    for path, data in zip(paths, contents, strict=True):
        path.write_bytes(data)
    command = [build / "sanitized" / "open_files", *options, *paths]
    environment = os.environ | {"ASAN_OPTIONS": "allocator_may_return_null=1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    noise = [line for line in done.stderr.splitlines() if "WARNING: AddressSanitizer" not in line]
    assert done.returncode == 0, "\n".join(noise[:60])
    messages = done.stdout.splitlines()
    assert len(messages) == len(contents)
    return [line.replace(str(path), "FILE") for line, path in zip(messages, paths, strict=True)]


def with_chat(path: Path, template: str, extra: tuple[int, ...]) -> Path:
    """Write a weight file with a chat section."""
    vocabulary = replace(
        engine_files.make_vocabulary(), chat_template=template, extra_eos_ids=extra
    )
    config = small_config(tied=False)
    return engine_files.write(path, config, engine_files.random_tensors(config), vocabulary)


def test_each_damaged_chat_section_has_its_message(build: Path, tmp_path: Path) -> None:
    template = "é {{ messages }}"
    good = with_chat(tmp_path / "m.slm", template, (5, 9)).read_bytes()
    at = good.index(template.encode())
    full = with_chat(tmp_path / "m.slm", "a" * 2**20, ()).read_bytes()
    none = with_chat(tmp_path / "m.slm", "", ()).read_bytes()
    damaged = [
        (good, "ok"),
        (full, "ok"),
        (none, "ok"),
        (with_field(none, "version", 2), "ok"),
        (with_chat(tmp_path / "m.slm", "", (0, SIZE - 1)).read_bytes(), "ok"),
        (with_field(good, "chat_template_bytes", len(template.encode()) + 1), "ok"),
        (with_field(full, "chat_template_bytes", 2**20 + 1), "its chat template is too long"),
        (with_field(good, "chat_template_bytes", 2**64 - 1), "its chat template is too long"),
        (with_field(good, "chat_template_bytes", 2**20), "its sections do not fit the file"),
        (with_field(good, "extra_eos_count", 2**32 - 1), "its sections do not fit the file"),
        (with_field(good, "chat_template_bytes", 0), "the padding between sections is not zero"),
        (with_field(none, "chat_template_bytes", 64), "is not the end of the chat section"),
        (with_field(good, "extra_eos_count", 1), "the padding between sections is not zero"),
        (with_field(good, "extra_eos_count", 3), "its extra EOS ids are out of range or do not ri"),
        (with_field(good, "version", 2), "its version is 2 and it has fields of version 3"),
        (with_field(good, "eos_id", 9), "its extra EOS ids are out of range or do not rise"),
        (changed(good, at - 4, "I", SIZE), "its extra EOS ids are out of range or do not rise"),
        (changed(good, at - 4, "I", 5), "its extra EOS ids are out of range or do not rise"),
        (changed(good, at - 8, "I", 2**31), "its extra EOS ids are out of range or do not rise"),
        (changed(good, at + 1, "B", 0x41), "its chat template is not valid UTF-8"),
        (changed(good, at + 30, "B", 1), "the padding between sections is not zero"),
    ]
    messages = open_files(build, tmp_path, [data for data, _ in damaged])
    for (data, expected), message in zip(damaged, messages, strict=True):
        assert expected in message
        # Python accepts and rejects the same files; it does not check the padding.
        path = tmp_path / "same.slm"
        path.write_bytes(data)
        if message == "ok" or "padding" in message:
            weight_file.read(path)
        else:
            with pytest.raises(UserError, match=r"same\.slm is damaged \("):
                weight_file.read(path)


def test_damaged_files_in_memory_are_safe(
    build: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    good = files["q4"]
    contents = [*files.values(), b"", good + bytes(64)]
    contents += [good[:length] for length in (1, 8, 100, 256, 1000, 4096, len(good) - 64)]
    for place in range(300, len(good), len(good) // 40):
        contents.append(engine_files.sealed(changed(good, place, "B", good[place] ^ 0x41)))
    in_files = open_files(build, tmp_path, contents)
    in_memory = open_files(build, tmp_path, contents, "-m")
    assert in_memory == [message.replace("FILE", "data") for message in in_files]
    assert 3 < in_memory.count("ok") < len(contents)


@pytest.mark.parametrize("seed", range(2))
def test_damaged_chat_sections_are_safe(build: Path, tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    good = with_chat(tmp_path / "m.slm", "{{ messages }}" * 9, (5, 9, 60)).read_bytes()
    start = good.index(b"{{ messages }}") - 12
    contents = []
    for _ in range(150):
        data = bytearray(good)
        for _ in range(source.choice([1, 2])):
            if source.random() < 0.5:
                place = source.choice([180, 184, 112, 120])
                value = source.choice([0, 1, 2, 4, 64, 128, 2**20, 2**31, 2**32 - 1])
                data[place : place + 4] = struct.pack("<I", value)
            else:
                data[source.randrange(start, start + 192)] ^= 1 << source.randrange(8)
        contents.append(engine_files.sealed(data))
    messages = open_files(build, tmp_path, contents)
    assert 10 < sum(message == "ok" for message in messages) < 140


def test_each_damage_has_its_message(build: Path, files: dict[str, bytes], tmp_path: Path) -> None:
    """Most of these files have a valid checksum, so that the checks after it are tested too."""
    good, q8, q4 = files["f32"], files["q8"], files["q4"]
    damaged = [
        (good, "ok"),
        (q8, "ok"),
        (q4, "ok"),
        (b"", "weight file FILE is empty"),
        (good[:5], "is not a StoryLlamas weight file"),
        (b"no weights " * 9, "is not a StoryLlamas weight file"),
        (good[:100], "is cut short: it has 100 bytes and a header has 256"),
        (good[:-64], f"is {len(good) - 64} bytes long and its header says {len(good)}"),
        (good + bytes(64), f"is {len(good) + 64} bytes long and its header says {len(good)}"),
        (with_field(good[:-1], "file_bytes", len(good) - 1), "not a multiple of 64 bytes"),
        (good[:1000] + b"!" + good[1001:], "its checksum does not match"),
        (with_field(good, "version", 1), "has version 1 and this program reads versions 2 and 3"),
        (with_field(good, "header_bytes", 512), "header_bytes is not 256"),
        *[
            (
                with_field(good, name, value),
                f"its {name} is {value} and must be 1 to {MAXIMA[name]}",
            )
            for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "hidden", "vocab_size")
            for value in (0, 2**20 + 1, 2**32 - 1)
        ],
        (with_field(good, "context", 2**20 + 1), "its context is 1048577 and must be 1 to 1048576"),
        (with_field(good, "kv_heads", 3), "kv_heads does not divide heads"),
        (with_field(good, "head_dim", 7), "head_dim is odd"),
        (with_field(good, "heads", 2**20), "heads times head_dim is out of range"),
        *[(with_field(good, "rope_theta", value), "rope_theta is not a positive number")
          for value in (0, -1, math.nan, math.inf)],
        *[(with_field(good, "norm_eps", value), "norm_eps is negative or not a number")
          for value in (-1, math.nan, math.inf)],
        *[(with_field(good, name, value), "a weight type is unknown")
          for name in ("weight_type", "embedding_type") for value in (3, 2**32 - 1)],
        (with_field(with_field(good, "embedding_type", 1), "embedding_group_size", 8),
         "only one of its weight types is f32"),
        *[(with_field(good, name, 64), "a group size of f32 weights is not 0")
          for name in ("group_size", "embedding_group_size")],
        *[(with_field(data, name, value),
           f"its group size is {value} and must be a multiple of {multiple} up to 16384")
          for data, name, multiple in ((q8, "group_size", 4), (q4, "group_size", 8),
                                       (q4, "embedding_group_size", 8))
          for value in (0, 6, multiple + 2, 16384 + multiple, 2**32 - multiple)],
        (with_field(q4, "group_size", 4), "its group size is 4 and must be a multiple of 8"),
        *[(with_field(data, "weight_type", other), "the padding between sections is not zero")
          for data, other in ((q8, 2), (q4, 1))],
        *[(with_field(good, name, value), f"{name} is out of range")
          for name in ("unk_id", "bos_id", "eos_id", "pad_id")
          for value in (-2, SIZE, 2**31 - 1)],
        (with_field(good, "flags", 8), "rules that SentencePiece does not have"),
        (with_field(good, "flags", 1 << 8), "it sets an unknown flag"),
        (with_field(good, "reserved", 1), "a reserved byte of the header is not zero"),
        (with_field(good, "tokenizer_offset", 320), "tokenizer_offset is not the end of the head"),
        *[(with_field(good, "tokenizer_bytes", value), "its sections do not fit the file")
          for value in (2**63, 2**64 - 1, len(good))],
        (with_field(good, "tokenizer_bytes", 20), "its tokenizer is cut short"),
        (changed(good, TEXT + TEXT_BYTES, "B", 1), "padding between sections is not zero"),
        (with_field(good, "tensors_offset", 0), "tensors_offset is not the end of the chat sect"),
        (with_field(good, "tensors_bytes", 64), "tensors_bytes is not the size of its tensors"),
        (with_field(good, "layers", 1), "something follows its last tensor"),
        (with_field(good, "hidden", 2**20), "its sections do not fit the file"),
        (with_field(good, "flags", 7), "something follows its last tensor"),
        (changed(good, OFFSETS, "I", 1), "its first piece is not at offset 0"),
        (changed(good, OFFSETS + 40, "I", 2**31), "the offsets of its pieces run backwards"),
        (changed(good, OFFSETS + 4 * SIZE, "I", 2**31), "its pieces do not end with the tokenizer"),
        *[(changed(good, SCORES + 20, "f", value), "piece 5 of its tokenizer has no finite score")
          for value in (math.nan, -math.inf)],
        (changed(good, OFFSETS + 4, "I", 0), "piece 0 of its tokenizer is empty"),
        (changed(good, TEXT, "B", 0xFF), "piece 0 of its tokenizer is not valid UTF-8"),
        (changed(good, TYPES + 7, "B", 0), "piece 7 of its tokenizer has an unknown type"),
        (changed(good, TYPES + 7, "B", 7), "piece 7 of its tokenizer has an unknown type"),
        (changed(good, TYPES + 1, "B", 2), "is of type unknown but is not unk_id"),
        (changed(good, TYPES, "B", 3), "is unk_id but not of type unknown"),
        (changed(good, TYPES + 1, "B", 6), "is a byte piece but does not spell a byte"),
        (changed(good, good.index(b"<0x41>") + 4, "B", ord("2")), "repeats a byte piece"),
        (changed(good, TYPES + 9, "B", 1), "byte fallback but no piece <0x06>"),
        (changed(good, good.index(b"ab\xe2\x96\x81"), "B", ord("b")), "ok"),
        (changed(good, good.index(b"ab\xe2\x96\x81") - 1, "B", ord("a")), "repeats another piece"),
        (changed(with_field(with_field(good, "flags", 0), "unk_id", -1), TYPES, "B", 3),
         "has neither an unknown piece nor byte fallback"),
    ]  # fmt: skip
    messages = open_files(build, tmp_path, [data for data, _ in damaged])
    wrong = [
        (expected, message)
        for (_, expected), message in zip(damaged, messages, strict=True)
        if expected not in message or (message != "ok" and "FILE" not in message)
    ]
    assert wrong == []


def mutated(good: bytes, source: random.Random) -> bytes:
    """Cut the file, or change some fields, words or bits, and give it a valid checksum."""
    data = bytearray(good)
    if source.random() < 0.1:
        return engine_files.sealed(data[: source.randrange(len(data))])
    for _ in range(source.choice([1, 1, 2, 4])):
        change = source.random()
        if change < 0.4:
            place, kind = FIELDS[source.choice(list(FIELDS))]
            size = struct.calcsize(kind)
            value = int.from_bytes(data[place : place + size], "little")
            near = [value + 1, value - 1, value * 2, value // 2, value + 64, value - 64]
            extreme = [0, 1, 2, 3, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
            other = source.choice(near + extreme) % 2 ** (8 * size)
            data[place : place + size] = other.to_bytes(size, "little")
        elif change < 0.8:
            place = source.randrange(256, TEXT + 2000) & ~3
            data[place : place + 4] = struct.pack("<I", source.choice([0, 255, 2**31, 2**32 - 1]))
        else:
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return engine_files.sealed(data)


@pytest.mark.parametrize("kind", GROUP_SIZES)
def test_random_damage_is_rejected_or_harmless(
    build: Path, files: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    source = random.Random(7)
    contents = [mutated(files[kind], source) for _ in range(600)]
    messages = open_files(build, tmp_path, contents)
    accepted = sum(message == "ok" for message in messages)
    assert 60 < accepted < 500  # some changes are harmless: a weight, a score, an epsilon
    assert len(set(messages)) > 30


def test_paths_without_a_weight_file(run: Run, tmp_path: Path) -> None:
    def error_of(path: Path) -> str:
        done = run(path, "a")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("error: ").strip()

    missing = tmp_path / "missing.slm"
    assert error_of(missing) == (
        f"weight file {missing} does not exist: "
        "name another file, or train a model with `dvc repro`"
    )
    assert (
        error_of(tmp_path)
        == f"weight file {tmp_path} is not a regular file: give the path of a .slm file"
    )
    old = tmp_path / "stories.bin"
    old.write_bytes(struct.pack("<7i", 288, 768, 6, 6, 6, 32000, 256) + bytes(4000))
    hint = (
        f"{old} is a llama2.c checkpoint: import it with `storyllamas import {old} --out model.slm`"
    )
    assert error_of(old) == hint
    old.write_bytes(struct.pack("<7i", 288, 768, 6, 6, 6, -32000, 256) + bytes(4000))
    assert error_of(old) == hint
    old.write_bytes(b"24ka" + struct.pack("<8i", 2, 288, 768, 6, 6, 6, 32000, 256) + bytes(4000))
    assert error_of(old) == hint


# ---- The library ---------------------------------------------------------------------------------


def test_the_headers_example_generates_a_story(build: Path, model: Path, tmp_path: Path) -> None:
    header = (ROOT / "csrc" / "storyllamas.h").read_text()
    lines = [line[7:] for line in header.split("*/")[0].splitlines() if line[:7].strip() == "*"]
    example = "\n".join(lines).replace('"model.slm"', "argv[1]")
    source = tmp_path / "example.c"
    source.write_text(
        "#include <stdio.h>\n#include <string.h>\n#include <storyllamas.h>\n"
        f"int main(int argc, char **argv) {{\n(void)argc;\n{example}\nreturn 0;\n}}\n"
    )
    compiler = [os.environ.get("CC", "cc"), "-std=c11", "-Wall", "-Wextra", "-Werror"]
    where = [f"-I{ROOT / 'csrc'}", f"-L{build}", "-lstoryllamas", f"-Wl,-rpath,{build}"]
    subprocess.run([*compiler, source, "-o", tmp_path / "example", *where], check=True)
    done = subprocess.run([tmp_path / "example", model], capture_output=True, check=True)
    prompt = "Once upon a time"
    assert done.stdout.decode() == "".join(Engine(model).generate(prompt, seed=7))


def test_the_library_exports_its_header_and_nothing_else(build: Path) -> None:
    if not shutil.which("nm"):
        pytest.skip("nm is not installed")
    (library,) = build.glob("libstoryllamas.*")
    flags = ["-gU"] if sys.platform == "darwin" else ["-D", "--defined-only"]
    listed = subprocess.run(["nm", *flags, library], capture_output=True, text=True, check=True)
    exported = {line.split()[-1].lstrip("_") for line in listed.stdout.splitlines()}
    header = (ROOT / "csrc" / "storyllamas.h").read_text()
    assert exported == set(re.findall(r"^SL_API [^(]*?(\w+)\(", header, re.M))


# ---- Kernels and leaks ---------------------------------------------------------------------------


def test_kernels_are_their_definitions(build: Path) -> None:
    done = subprocess.run(
        [build / "sanitized" / "kernels", "100"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


AVAILABLE = """
#include "kernels/sets.h"
const sl_kernels *const *sl_kernels_available(void) {
    static const sl_kernels *sets[4];
    if (!sets[0]) SET_ALL;
    return sets;
}
sl_matmul_quantized *sl_matmul_of(const sl_kernels *kernels, uint32_t type) {
    sl_matmul_quantized *const own = kernels->matmul_quantized[type];
    return own ? own : sl_kernels_scalar.matmul_quantized[type];
}
"""
EMULATED = ROOT / "tests" / "c" / "emulated"


@pytest.mark.skipif("avx2" not in kernel_sets(), reason="the emulation needs AVX2")
@pytest.mark.parametrize(
    ("sets", "flags"),
    [
        ({"avx512": "&sl_kernels_avx512", "amx": "sl_kernels_amx()"}, ["-I", EMULATED]),
        (
            {"avxvnni": "&sl_kernels_avxvnni"},
            ["-include", EMULATED / "avxvnni.h", "-mavx2", "-DSL_AVX_VNNI="],
        ),
    ],
    ids=["avx512", "avxvnni"],
)
def test_emulated_kernels_are_their_definitions(
    tmp_path: Path, sets: dict[str, str], flags: list[str | Path]
) -> None:
    """Emulate instruction sets that many processors lack, so that their kernels are tested.

    The rows of a product are compared with products of single rows, and all results with those of
    AVX2, bit for bit.
    """
    csrc = ROOT / "csrc"
    for path in (csrc / "kernels").glob("a*.c"):
        # With the pragmas, the compiler would use the instructions elsewhere too.
        pragmas = r"#ifdef __clang__\n#pragma clang attribute.*?#endif\n"
        source = re.sub(pragmas, "", path.read_text(), flags=re.DOTALL)
        (tmp_path / path.name).write_text(source.replace(",avxvnni", ""))
    all_sets = {"avx2": "&sl_kernels_avx2", **sets}
    assigned = " ".join(
        f"sets[{index}] = {kernels};" for index, kernels in enumerate(all_sets.values())
    )
    (tmp_path / "available.c").write_text(AVAILABLE.replace("SET_ALL", f"{{ {assigned} }}"))
    common = ["-std=c11", "-O0", "-fsanitize=address,undefined", "-I", csrc, "-I", csrc / "kernels"]
    compiler = [os.environ.get("CC", "cc"), *common, "-DSL_AMX="]
    emulated = [f"{name}.c" for name in sets]
    subprocess.run([*compiler, *flags, "-c", *emulated], check=True, cwd=tmp_path)
    others = [
        ROOT / "tests" / "c" / "kernels.c",
        *(csrc / "kernels" / f"{name}.c" for name in ("scalar", "avx2")),
    ]
    own = ["available.c", *(f"{name}.o" for name in sets)]
    program = [*compiler, *others, *own, "-lm", "-o", "kernels"]
    subprocess.run(program, check=True, cwd=tmp_path)
    done = subprocess.run([tmp_path / "kernels", "40"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(all_sets)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_thread_pool_processes_every_item_once(build: Path, threads: int) -> None:
    for sanitizer in ("sanitized", "raced"):
        command = [build / sanitizer / "thread_pool", str(threads), "3000"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_autotuning_is_close_to_the_best_number_of_threads(build: Path) -> None:
    done = subprocess.run(
        [build / "sanitized" / "autotune"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model that migrates to huge pages while it generates."""
    config = small_config(dim=128, vocab_size=18000, context=120)
    path = tmp_path_factory.mktemp("large") / "m.slm"
    return engine_files.write(path, config, engine_files.random_tensors(config, 1))


@pytest.mark.parametrize(
    ("name", "cache"), [("model", "auto"), ("model", "q8"), ("large_model", "auto")]
)
def test_threads_do_not_race(
    build: Path, name: str, cache: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    command = [build / "raced" / "run", path, "--threads", "3", "-n", "100", "--cache", cache]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_a_draft_does_not_race(build: Path, model: Path) -> None:
    command = [build / "raced" / "run", model, "--threads", "3", "-n", "100", "--draft", model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert "drafted tokens accepted" in done.stderr


def test_migration_to_huge_pages_changes_no_story(run: Run, large_model: Path) -> None:
    for tokens in (1, 5, 100):  # the program ends before, during or after the migration
        runs = [run(large_model, "-n", tokens, "--pages", p) for p in ("auto", "shared", "huge")]
        assert [done.returncode for done in runs] == [0, 0, 0], runs[0].stderr
        assert len({done.stdout for done in runs}) == 1


def test_valgrind(build: Path, model: Path) -> None:
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    options = ["--quiet", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=all"]
    for arguments in (["a b", "--top-k", "5"], ["--max-tokens", "0"], ["--info"], ["b" * 200]):
        command = ["valgrind", *options, build / "run", model, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 9, done.stderr
