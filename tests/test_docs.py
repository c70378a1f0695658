"""What README and docs say holds: each command would be accepted, each key, file, target and link exists.

Commands of the package go through the verbs' own option parsers; the few that make a run are really run, in
test_docs_tour.py.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import PAGES, Block, anchors, blocks, commented, links, spans
from toy import REPOSITORY

from drwr_dist.bench import BenchConfig
from drwr_dist.cli import load_options
from drwr_dist.config import TrainConfig, TuneConfig
from drwr_dist.data.stream import StreamOptions
from drwr_dist.errors import UsageError
from drwr_dist.evaluate import EvaluateOptions
from drwr_dist.export import ExportOptions
from drwr_dist.launch import CheckOptions
from drwr_dist.predict import PredictOptions
from drwr_dist.shards import ImportOptions, InspectOptions, VerifyOptions
from drwr_dist.shards import _check_options as check_import
from drwr_dist.sweep.checks import check_sweep
from drwr_dist.validation import validate

KUBERAY = REPOSITORY / "launch" / "kuberay.yaml"
BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
HEADED = [path for folder in ("launch", "configs") for path in sorted((REPOSITORY / folder).iterdir())]
SHELL += [block for path in HEADED if path.suffix in (".yaml", ".sh", "") if (block := commented(path))]
JOB = next(each for each in yaml.safe_load_all(KUBERAY.read_text()) if each["kind"] == "RayJob")
SHELL.append(Block(KUBERAY, 1, "sh", JOB["spec"]["entrypoint"]))
LANGUAGES = {"sh", "python", "yaml", "json", "text"}

# verb -> (schema, what checks the values further)
VERBS: dict[str, tuple[type, Any]] = {
    "train": (TrainConfig, validate),
    "tune": (TuneConfig, check_sweep),
    "bench": (BenchConfig, validate),
    "evaluate": (EvaluateOptions, None),
    "predict": (PredictOptions, None),
    "export": (ExportOptions, None),
    "launch check": (CheckOptions, None),
    "shards import": (ImportOptions, check_import),
    "shards inspect": (InspectOptions, None),
    "shards verify": (VerifyOptions, None),
    "shards stream": (StreamOptions, None),
}

# Programs that are not ours; what they are given is not looked at, but for files of the repository.
FOREIGN = {
    "apt-get", "cat", "cd", "chmod", "colmap", "cp", "docker", "export", "gcloud", "git", "kubectl", "ls", "mkdir",
    "nft", "nvidia-smi", "open", "rsync", "scp", "sqlite3", "ssh", "ssh-keygen", "tail", "tar", "wget",
}  # fmt: skip


def check_verb(verb: str, arguments: list[str]) -> None:
    """Let the verb's own parser read the arguments; a configuration that exists in the repository is read too."""
    if "--help" in arguments:
        return
    schema, check = VERBS[verb]
    known = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        there = (REPOSITORY / value).is_file() or "/configs/" in f"/{value}"
        if key == "config" and not there and (value.startswith("/") or value.isupper() or value.endswith(".yaml")):
            continue  # the reader's own file; else the name of a preset
        known.append(re.sub(r"^config=(/app/)?configs/", f"config={REPOSITORY}/configs/", argument))
    known = [argument for argument in known if not re.fullmatch(r"source=SOURCE", argument)]
    needed = {"source": "meshes"} if verb == "shards import" else {}
    given = {argument.partition("=")[0] for argument in known}
    options = load_options(schema, [*known, *(f"{k}={v}" for k, v in needed.items() if k not in given)], verb=verb)
    has_file = any(argument.startswith("config=") for argument in known)
    if check is not None and (verb != "tune" or has_file):
        check(options)


def check_command(words: list[str], environment: dict[str, str] | None = None) -> None:
    """Check one command, and the commands that stand in it."""
    environment = dict(environment or {})
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        key, _, value = words[0].partition("=")
        environment[key], words = value, words[1:]
    for separator in ("&&", ";", "|"):
        if separator in words:
            place = words.index(separator)
            check_command(words[:place], environment)
            check_command(words[place + 1 :], environment)
            return
    if not words:
        return
    program, rest = words[0], words[1:]
    if program in (".", "source"):
        assert rest[0].endswith("activate") or (REPOSITORY / rest[0]).exists(), f"{rest[0]} does not exist"
    elif re.fullmatch(r"(\.venv/bin/)?python3?", program):
        check_python(rest)
    elif program == "make":
        check_make(rest)
    elif program == "ray":
        check_ray(rest)
    elif program == "sbatch":
        script = next(place for place, word in enumerate(rest) if not word.startswith("-"))
        assert (REPOSITORY / rest[script]).is_file(), rest[script]
        check_verb(environment.get("DRWR_VERB", "train"), rest[script + 1 :])
    elif program.startswith("launch/"):
        text = (REPOSITORY / program).read_text(encoding="utf-8")
        assert re.search(rf"^\s*{rest[0]}\)|\b{rest[0]}\b", text, re.MULTILINE), f"{program} knows no {rest[0]}"
    elif program.endswith("pip"):
        check_pip(rest)
    elif program in ("pytest", "tensorboard", "mutmut"):
        check_files(rest)
    else:
        assert program in FOREIGN, f"{program}: neither ours nor in FOREIGN"
        check_files(rest)
        if program == "docker" and "python" in rest:
            check_command(rest[rest.index("python") :])


def check_python(rest: list[str]) -> None:
    if rest[:1] == ["-m"]:
        module, arguments = rest[1], rest[2:]
        if module == "drwr_dist" or module in ("pip", "pytest", "venv"):
            check_pip(arguments) if module == "pip" else check_files(arguments)
            return
        assert module.startswith("drwr_dist."), module
        verb = module.removeprefix("drwr_dist.")
        if verb in ("shards", "launch") and arguments[:1] != ["--help"]:
            verb, arguments = f"{verb} {arguments[0]}", arguments[1:]
        check_verb(verb, arguments)
    else:
        assert (REPOSITORY / rest[0]).is_file(), f"{rest[0]} does not exist"
        if rest[0].startswith("benchmarks/"):
            check_benchmark(REPOSITORY / rest[0], rest[1:])


def check_benchmark(script: Path, arguments: list[str]) -> None:
    """Each key of a benchmark is a field of the options in its file, or of a training."""
    text = script.read_text(encoding="utf-8")
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("-")
        training = key.split(".")[0] in {entry.name for entry in dataclasses.fields(TrainConfig)}
        assert re.search(rf"\b{re.escape(key)}\b", text) or training, f"{script.name} knows no {key}"


def check_make(rest: list[str]) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for word in rest:
        if "=" in word:
            assert re.search(rf"^{word.partition('=')[0]}\s*\??=", makefile, re.MULTILINE), f"make knows no {word}"
        else:
            assert word in targets, f"make has no target {word}"


def check_pip(rest: list[str]) -> None:
    declared = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for extras in re.findall(r"\[([a-z,]+)\]", " ".join(rest)):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", declared, re.MULTILINE), f"no extra {extra}"


def check_ray(rest: list[str]) -> None:
    action = " ".join(rest[:2]) if rest[0] in ("job", "list") else rest[0]
    after = rest[rest.index("--") + 1 :] if "--" in rest else []
    check_files(rest[: rest.index("--")] if "--" in rest else rest)
    if action == "submit":
        for script in (word for word in rest if word.startswith("launch/") and word.endswith(".py")):
            check_verb(Path(script).stem, after)
    elif action == "exec":
        check_command(shlex.split(rest[-1]))
    elif action == "job submit":
        check_command(after)
    else:
        known = ("up", "down", "status", "stop", "start", "dashboard", "attach", "get-auth-token", "list nodes")
        assert action in (*known, "job list", "job logs", "job stop"), action


def check_files(words: list[str]) -> None:
    """Files of the repository that are named exist."""
    for word in words:
        if re.match(r"(launch|configs|docs|tests|benchmarks|shards|drwr_dist)/[\w./-]+\.\w+$", word):
            assert (REPOSITORY / word).exists(), f"{word} does not exist"


def test_there_is_something_to_check():
    assert len(PAGES) >= 15 and len(SHELL) >= 15


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_its_language(block: Block):
    assert block.language in LANGUAGES, f"{block}: one of {sorted(LANGUAGES)} after the backticks"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_command_would_be_accepted(block: Block):
    assert block.commands(), f"{block} holds no command"
    for words in block.commands():
        try:
            check_command(words)
        except (UsageError, AssertionError) as error:
            pytest.fail(f"{block}: {' '.join(words)}: {error}")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=str)
def test_every_configuration_would_be_accepted(block: Block, tmp_path: Path):
    content = yaml.safe_load(block.text)
    schema = TuneConfig if "sweep" in content else TrainConfig
    if set(content) <= {entry.name for entry in dataclasses.fields(schema)}:
        (tmp_path / "a.yaml").write_text(block.text)
        options = load_options(schema, [f"config={tmp_path / 'a.yaml'}"], verb="train")
        check_sweep(options) if schema is TuneConfig else validate(options)


def keys_of(schema: type, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for entry in dataclasses.fields(schema):
        group = entry.default_factory
        if isinstance(group, type) and dataclasses.is_dataclass(group):
            found |= {prefix + entry.name} | keys_of(group, f"{prefix}{entry.name}.")
        else:
            found.add(prefix + entry.name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_key_that_prose_names_exists(page: Path):
    """`loss.grid`, `data.on_bad_sample=skip`: whatever begins with a group of the configuration."""
    known = keys_of(TuneConfig)
    groups = {key.split(".")[0] for key in known if "." in key}
    named = {
        match[1] for span in spans(page) if (match := re.match(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:=|$)", span))
        and match[1].split(".")[0] in groups and not re.search(r"\.(py|yaml|jsonl?|md|csv|txt|html)$", match[1])
    }  # fmt: skip
    if page.name == "CHANGELOG.md":  # it tells of keys that were, too
        named &= known
    assert named - known == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_command_in_prose_would_be_accepted(page: Path):
    for span in spans(page):
        if re.match(r"(python -m drwr_dist\.|make [a-z]|ray (up|down|submit|exec|job)\b)", span) and "VERB" not in span:
            words = [word for word in shlex.split(span) if "…" not in word]
            try:
                check_command(words)
            except (UsageError, AssertionError) as error:
                if "is needed" not in str(error):  # prose may leave out what goes without saying
                    pytest.fail(f"{span}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(page: Path):
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        found = (page.parent / place).resolve() if place else page
        assert found.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(found), f"{target}: no such heading; {sorted(anchors(found))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_file_that_prose_names_exists(page: Path):
    if page.name == "CHANGELOG.md":
        return
    folders = "configs|docs|tests|benchmarks|launch|shards|drwr_dist"
    inner = "data|sources|engine|losses|sweep|report|preflight"
    for span in spans(page):
        if re.fullmatch(rf"(?:{folders}|{inner})/[\w./-]+\.(?:py|yaml|md|sh|csv|npz|html|png)", span):
            places = (REPOSITORY / span, REPOSITORY / "drwr_dist" / span, page.parent / span)
            assert any(place.exists() for place in places), f"{span} does not exist"
