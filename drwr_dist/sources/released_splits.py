"""The split lists that come with the released renders: which model ids are train, val and test.

Three forms, per category (synset): `<synset>_train.txt`, `_val.txt`, `_test.txt` with one id a line; or
`<synset>.file`, the ASCII form of a Torch table {split = {id, …}}, which is read as text, token by token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from drwr_dist.config import SPLITS
from drwr_dist.errors import DataError

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # never a path
_MAX_BYTES = 64 * 2**20
_NUMBER, _STRING, _TABLE = "1", "2", "3"  # type tags of the Torch table


def read_lists(folders: Sequence[Path], category: str) -> dict[str, str] | None:
    """Read the lists of a category from the first folder that has some.

    Args:
        folders: where lists may lie.
        category: synset.

    Returns:
        Model id → split in the order of the lists, or None where there are none.

    Raises:
        DataError: names the file: not such a list, an id that isn't one, or an id in two splits.
    """
    for folder in folders:
        texts = {split: folder / f"{category}_{split}.txt" for split in SPLITS}
        if any(path.is_file() for path in texts.values()):
            lists = {split: _read(path).split() for split, path in texts.items() if path.is_file()}
            return _joined(lists, folder / f"{category}_*.txt")
        table = folder / f"{category}.file"
        if table.is_file():
            return _joined(_parse_table(_read(table), table), table)
    return None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: more than {_MAX_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error


def _joined(lists: dict[str, list[str]], where: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for split, models in lists.items():
        if split not in SPLITS:
            raise DataError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
        for model in models:
            if not MODEL_ID.fullmatch(model):
                raise DataError(f"{where}: {model[:80]!r} is not a model id")
            if found.setdefault(model, split) != split:
                raise DataError(f"{where}: {model} is both in {found[model]} and in {split}")
    return found


def _parse_table(text: str, path: Path) -> dict[str, list[str]]:
    tokens = iter(text.splitlines())
    try:
        lists: dict[str, list[str]] = {}
        for _ in range(_open_table(tokens)):
            name = _string(tokens)
            lists[name] = [_item(tokens) for _ in range(_open_table(tokens))]
        return lists
    except (StopIteration, ValueError) as error:
        reason = str(error) or "it ends too early"
        raise DataError(f"{path}: not a split table of the released data ({reason})") from error


def _expect(tokens: Iterator[str], tag: str) -> None:
    found = next(tokens).strip()
    if found != tag:
        raise ValueError(f"type {tag} expected, found {found[:20]!r}")


def _open_table(tokens: Iterator[str]) -> int:
    _expect(tokens, _TABLE)
    next(tokens)  # the table's number in the file
    return int(next(tokens))


def _string(tokens: Iterator[str]) -> str:
    _expect(tokens, _STRING)
    next(tokens)  # its length
    return next(tokens).strip()


def _item(tokens: Iterator[str]) -> str:
    _expect(tokens, _NUMBER)
    next(tokens)  # its place
    return _string(tokens)
