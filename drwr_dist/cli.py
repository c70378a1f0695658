"""Command lines: `config=FILE key=value …` into a typed dataclass, `--help` out of it, errors into exit codes."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drwr_dist.errors import DrwrError, UsageError, is_refusal

Options = TypeVar("Options")

PRESETS = Path(__file__).with_name("configs")  # come with the package


def run_verb(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None = None) -> typing.NoReturn:
    """Run `main(arguments)` and exit: 0 done, 2 usage error, 1 failed work, 130 interrupted.

    Errors that we foresee become one line on stderr; anything else keeps its traceback.
    """
    try:
        code = main(list(sys.argv[1:] if arguments is None else arguments)) or 0
        sys.stdout.flush()
    except DrwrError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`… | head`); Python would complain again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if not is_refusal(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def load_options(schema: type[Options], arguments: Sequence[str], *, verb: str, with_file: bool = True) -> Options:
    """Build `schema` from its defaults, the YAML file of `config=FILE`, and the `key=value` arguments, in that order.

    A group that has a key `path` may be given as one word: `data=DIR` is `data.path=DIR`. A preset that comes with the
    package goes by its name alone: `config=demo`.

    Raises:
        UsageError: an argument without `=`, an unknown key, a value of the wrong type, an unreadable file.
        SystemExit: with code 0, after printing the help for `--help` or `-h`.
    """
    if "--help" in arguments or "-h" in arguments:
        print(help_text(schema, verb, with_file))
        raise SystemExit(0)
    pairs = [_split_argument(argument, verb) for argument in arguments]
    merged = OmegaConf.structured(schema)
    for key, value in pairs:
        if key == "config" and with_file:
            merged = _merge(schema, merged, _read_file(value), origin=value)
    for key, value in pairs:
        if key != "config" or not with_file:
            merged = _merge(schema, merged, _nested(key, value), origin="the command line")
    missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
    if missing:
        raise UsageError(f"{verb}: {missing[0]}=… is needed (--help lists every key)")
    return typing.cast(Options, OmegaConf.to_object(merged))


def _split_argument(argument: str, verb: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals or not key:
        raise UsageError(f"{verb}: {argument!r} is not key=value (--help lists every key)")
    return key, _at_home(value)


def _at_home(value: str) -> str:
    """Expand ~/ at the start of each path of a value: not every shell does so after a `=`, and none in quotes."""
    return ",".join(os.path.expanduser(part) if part.startswith("~/") else part for part in value.split(","))


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _find_file(path: str) -> Path:
    """Return the file of `config=…`: the path as it is, or the preset of this name where no such file exists."""
    if Path(path).is_file() or path not in preset_names():
        return Path(path)
    return PRESETS / f"{path}.yaml"


def _read_file(path: str) -> dict[str, Any]:
    try:
        content = yaml.load(_find_file(path).read_text(encoding="utf-8"), Loader=_Numbers)
    except FileNotFoundError as error:
        presets = ", ".join(preset_names())
        raise UsageError(f"config={path}: No such file; presets that go by their name: {presets}") from error
    except OSError as error:
        raise UsageError(f"config={path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"config={path}: not a YAML file: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"config={path}: expected keys and values, found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _nested(key: str, text: str) -> dict[str, Any]:
    try:
        value = yaml.load(text, Loader=_Numbers)
    except yaml.YAMLError:
        value = text  # a path with a colon, say: the type check decides
    for part in reversed(key.split(".")):
        value = {part: value}
    return typing.cast(dict[str, Any], value)


class _Numbers(yaml.SafeLoader):
    """YAML that reads 3e-4 as a number, as everyone expects who types it, and 03001627 as a name, not as octal."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Numbers.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Numbers.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _merge(schema: type, merged: DictConfig, content: dict[str, Any], origin: str) -> DictConfig:
    content = _spell_out(schema, content)
    _refuse_unknown(schema, content, origin, prefix="")
    try:
        return typing.cast(DictConfig, OmegaConf.merge(merged, content))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or next(iter(_flat_keys(content)), "?")
        reason = str(error).splitlines()[0]
        raise UsageError(f"{key} in {origin}: {reason}") from error


def _groups(schema: type) -> dict[str, type]:
    hints = typing.get_type_hints(schema)
    return {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint) and isinstance(hint, type)}


def _spell_out(schema: type, content: dict[str, Any]) -> dict[str, Any]:
    groups = _groups(schema)
    return {
        key: {"path": value}
        if key in groups and not isinstance(value, dict) and "path" in _names(groups[key])
        else value
        for key, value in content.items()
    }


def _names(schema: type) -> list[str]:
    return [entry.name for entry in dataclasses.fields(schema)]


def _refuse_unknown(schema: type, content: dict[str, Any], origin: str, prefix: str) -> None:
    groups = _groups(schema)
    for key, value in content.items():
        if key not in _names(schema):
            everything = [prefix + name for name in _names(schema)]
            near = difflib.get_close_matches(prefix + key, everything, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(_names(schema))}"
            raise UsageError(f"unknown key {prefix + key} in {origin}{hint}")
        if key in groups:
            if not isinstance(value, dict):
                raise UsageError(f"{prefix + key} in {origin}: a group of keys; write {prefix + key}.KEY=VALUE")
            _refuse_unknown(groups[key], value, origin, f"{prefix}{key}.")


def _flat_keys(content: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in content.items():
        keys += _flat_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return keys


def help_text(schema: type, verb: str, with_file: bool = True) -> str:
    """Return the help of `schema`: every key with its type, default and the comment beside its field."""
    summary = (inspect.getdoc(schema) or "").splitlines()[0]
    head = f"usage: python -m drwr_dist.{verb} {'[config=FILE] ' if with_file else ''}key=value …\n\n{summary}\n"
    if with_file:
        head += f"config=FILE: a YAML file with these keys, or one of the presets {', '.join(preset_names())}.\n"
    rows = list(_help_rows(schema, ""))
    width = max(len(left) for left, _ in rows)
    return head + "\n" + "\n".join(f"  {left.ljust(width)}  {right}" for left, right in rows)


def _help_rows(schema: type, prefix: str) -> typing.Iterator[tuple[str, str]]:
    owners = [owner for owner in schema.__mro__ if dataclasses.is_dataclass(owner)]
    source = "\n".join(inspect.getsource(owner) for owner in owners)  # inherited fields have their help there
    groups = _groups(schema)
    for entry in dataclasses.fields(schema):
        if entry.name in groups:
            continue
        found = re.search(rf"^    {entry.name}: ([^=#\n]+?)(?: = [^#\n]*)?(?:  # (.*))?$", source, re.MULTILINE)
        kind, comment = (found.group(1), found.group(2) or "") if found else (str(entry.type), "")
        yield f"{prefix}{entry.name}={_default_text(entry)}", f"{kind.replace('Any', 'int or list')}: {comment}"
    for name, group in groups.items():
        yield from _help_rows(group, f"{prefix}{name}.")


def _default_text(entry: dataclasses.Field[Any]) -> str:
    if entry.default is not dataclasses.MISSING:
        return "… (needed)" if entry.default == "???" else str(entry.default)
    if entry.default_factory is not dataclasses.MISSING:
        return str(entry.default_factory())
    return "… (needed)"
