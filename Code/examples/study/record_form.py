"""What the report needs of a record of a run. People move and edit these files, and other versions write them."""

from __future__ import annotations

import math
from typing import Any

from experiments import BASE, ROWS

from Code.toolkit.messages import shown

OBJECTS = ("setting", "versions", "training", "general", "task")
LATER = ("log", "by_position", "code")  # objects that not every record has
ITEMS = {"general": "kl", "task": "exact_match", "code": "passed"}  # part -> the column that it has at least
FEWER = ("input_kl", "input_top1")  # measured on the first items only
SAME = ("answerable", "cluster")  # they tell which items the other columns are about


def checked(record: Any) -> dict[str, Any]:
    """The record.

    Raises:
        ValueError: it has another form. The error names the place.
    """
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {shown(record)}")
    for name in (*OBJECTS, *(later for later in LATER if later in record)):
        if not isinstance(record.get(name), dict):
            raise ValueError(f"{name}: expected an object, found {shown(record.get(name))}")
    arm, seed = record.get("arm"), record.get("seed")
    if arm not in ROWS:
        raise ValueError(f"arm: expected one of this study's, found {shown(arm)}")
    if not (seed is None if arm == BASE else type(seed) is int):
        raise ValueError(f"seed: expected {'null' if arm == BASE else 'a whole number'}, found {shown(seed)}")
    for name, version in record["versions"].items():
        if not isinstance(version, str):
            raise ValueError(f"versions.{name}: expected a text, found {shown(version)}")
    for name, number in record["training"].items():
        _number(number, f"training.{name}")
    for part in ("log", "by_position"):
        for name, column in record.get(part, {}).items():
            _numbers([one for one in _list(column, f"{part}.{name}") if one is not None], f"{part}.{name}")
    for part, least in ITEMS.items():
        if part in record:
            _columns(record[part], part, least)
    return record


def _columns(columns: dict[str, Any], part: str, least: str) -> None:
    """Columns of finite numbers, with one for each item."""
    for name in (least, *columns):
        _numbers(_list(columns.get(name), f"{part}.{name}"), f"{part}.{name}")
    for name, column in columns.items():
        like = FEWER[0] if name in FEWER and FEWER[0] in columns else least
        if not column or (len(column) != len(columns[like]) and name not in FEWER[:1]):
            raise ValueError(f"{part}.{name}: expected as many numbers as {part}.{like} has, found {len(column)}")
    if "cluster" in columns and "answerable" not in columns:
        raise ValueError(f"{part}.answerable: expected a list, beside {part}.cluster")


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{place}: expected a list of numbers, found {shown(value)}")
    return value


def _numbers(values: list[Any], place: str) -> None:
    for at, value in enumerate(values):
        _number(value, f"{place}[{at}]")


def _number(value: Any, place: str) -> None:
    try:
        fits = type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        fits = False
    if not fits:
        raise ValueError(f"{place}: expected a finite number, found {shown(value)}")


def compare(record: dict[str, Any], other: dict[str, Any]) -> None:
    """Make sure that two records of one setting are about the same items: the report pairs them.

    Raises:
        ValueError: they are not. The error names the place.
    """
    for part in ITEMS:
        ours, theirs = record.get(part, {}), other.get(part, {})
        for name in [name for name in ours if name in theirs]:
            if len(ours[name]) != len(theirs[name]):
                raise ValueError(f"{part}.{name}: {len(ours[name])} numbers, not {len(theirs[name])}")
            if name in SAME and ours[name] != theirs[name]:
                raise ValueError(f"{part}.{name}: other values, so other questions")
