"""Digests of files are those of their bytes, whether computed or remembered."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from soups import digests
from soups.digests import sha256
from soups.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "soups" / "digests"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 1000)
    now = time.time_ns()
    monkeypatch.setattr(digests.time, "time_ns", lambda: now + 10 * digests.SETTLED_NS)
    return path


def true_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_digest_is_computed_once(file, cache, monkeypatch):
    expected = true_digest(file)
    assert sha256(file) == expected
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(digests.hashlib, "sha256", lambda: pytest.fail("computed again"))
    assert sha256(file) == expected


@pytest.mark.parametrize("change", ["content", "same size and time", "replaced"])
def test_a_file_that_changed_is_read_again(file, change):
    sha256(file)
    before = file.stat()
    other = b"x" * before.st_size if change != "content" else b"shorter"
    if change == "replaced":
        new = file.with_name("new")
        new.write_bytes(other)
        new.replace(file)
    else:
        time.sleep(0.02)  # the clock of the file system ticks every few milliseconds
        file.write_bytes(other)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256(file) == true_digest(file)


def test_a_file_that_has_just_changed_is_not_remembered(file, cache, monkeypatch):
    monkeypatch.setattr(digests.time, "time_ns", lambda: file.stat().st_mtime_ns + 1)
    assert sha256(file) == true_digest(file)
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["", "[]", "{", json.dumps({"sha256": "0" * 64}), "\xff"])
def test_a_damaged_memory_is_ignored(file, cache, damage):
    sha256(file)
    (kept,) = cache.iterdir()
    kept.write_text(damage, encoding="latin-1")
    assert sha256(file) == true_digest(file)


def test_without_a_place_to_remember_digests_are_computed(file, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert sha256(file) == true_digest(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read"):
        sha256(tmp_path / "nothing")
