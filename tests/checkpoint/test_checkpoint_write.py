"""Writing engine directories: whole or not at all, and over nothing that is not ours."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.checkpoint import directory, read, save
from engine.errors import CheckpointError
from tests.support.store_cases import assert_same, random_checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(random_checkpoint(1, "aiha"), tmp_path / "model")
    return tmp_path / "model"


def test_an_existing_directory_needs_force(saved: Path, tmp_path: Path) -> None:
    other = random_checkpoint(2, "fair")
    with pytest.raises(CheckpointError, match="--force"):
        save(other, saved)
    save(other, saved, force=True)
    assert_same(read(saved, check=True), other)
    (tmp_path / "empty").mkdir()
    save(other, tmp_path / "empty", force=True)
    assert sorted(os.listdir(tmp_path)) == ["empty", "model"]


def test_force_replaces_nothing_but_engine_files(saved: Path, tmp_path: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        save(random_checkpoint(2), saved, force=True)
    assert (saved / "notes.txt").read_text() == "mine"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an engine directory or an empty one"):
        save(random_checkpoint(2), tmp_path / "home", force=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="something else"):
        save(random_checkpoint(2), tmp_path / "file", force=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_loaded_checkpoint_replaces_its_own_directory(saved: Path) -> None:
    loaded = read(saved)
    save(loaded, saved, force=True)
    assert_same(read(saved, check=True), loaded)


def test_a_link_to_a_directory_stays_a_link(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved)
    save(random_checkpoint(7), tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    assert_same(read(saved), random_checkpoint(7))


def test_a_destination_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for destination in (tmp_path / "file" / "model", tmp_path / "nul\0byte", tmp_path / ("n" * 300), Path("/proc/none/model")):
        with pytest.raises(CheckpointError, match="cannot be written"):
            save(random_checkpoint(1), destination)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt(), MemoryError()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("place", ["replace", "fsync", "digest", "write"])
@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_save_leaves_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, failure: BaseException, existing: bool
) -> None:
    before = random_checkpoint(1)
    destination = tmp_path / "made" / "model"
    if existing:
        save(before, destination)

    def fail(*_: object, **__: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        targets = {"replace": (os, "replace"), "fsync": (os, "fsync"), "digest": (directory, "digest"), "write": (directory, "_write")}
        patch.setattr(*targets[place], fail)
        with pytest.raises(CheckpointError if isinstance(failure, OSError) else type(failure)):
            save(random_checkpoint(2), destination, force=True)
    if existing:
        assert os.listdir(tmp_path / "made") == ["model"]
        assert_same(read(destination, check=True), before)
    else:
        assert os.listdir(tmp_path) == []


def test_a_failed_exchange_puts_the_old_directory_back(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_once = os.replace

    def fail_on_new(source: Path, target: Path) -> None:
        if "headcount-new" in str(source):
            raise KeyboardInterrupt
        replace_once(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", fail_on_new)
        save(random_checkpoint(2), saved, force=True)
    assert os.listdir(saved.parent) == ["model"]
    assert_same(read(saved, check=True), random_checkpoint(1, "aiha"))


KILLED = """
import os, sys, time
from tests.support.store_cases import random_checkpoint
from engine import checkpoint
from engine.checkpoint import directory
def stall(path, data):
    print("writing", flush=True)
    time.sleep(60)
directory._write = stall
checkpoint.save(random_checkpoint(2), sys.argv[1], force=True)
"""


@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_save_leaves_no_half_directory(tmp_path: Path, existing: bool) -> None:
    destination = tmp_path / "model"
    if existing:
        save(random_checkpoint(1), destination)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(destination)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}) as process:
        assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        left = [name for name in os.listdir(tmp_path) if name != "model"]
        save(random_checkpoint(3), tmp_path / "model2")
        if existing:
            save(random_checkpoint(1), destination, force=True)  # the other process is alive: its files stay
        assert [name for name in os.listdir(tmp_path) if not name.startswith("model")] == left
        process.send_signal(signal.SIGKILL)
    assert destination.exists() == existing
    assert len(left) == 1 and left[0].startswith(".model.headcount-new-")
    if existing:
        assert_same(read(destination, check=True), random_checkpoint(1))
    save(random_checkpoint(4), destination, force=True)
    assert sorted(os.listdir(tmp_path)) == ["model", "model2"]
    assert_same(read(destination, check=True), random_checkpoint(4))


def test_an_old_directory_left_by_a_kill_goes_once_a_new_one_stands(saved: Path) -> None:
    shutil.copytree(saved, saved.with_name(".model.headcount-old-0a1b2c3d"))
    save(random_checkpoint(2), saved, force=True)
    assert os.listdir(saved.parent) == ["model"]


SAVING = """
import sys
from tests.support.store_cases import random_checkpoint
from engine.checkpoint import save
from engine.errors import CheckpointError
for _ in range(15):
    try:
        save(random_checkpoint(int(sys.argv[2])), sys.argv[1], force=True)
    except CheckpointError:
        pass  # the other one came first
"""


def test_two_saves_at_once_leave_one_whole_directory(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    running = [subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path / "m"), seed], cwd=root, env=environment) for seed in "12"]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    found = read(tmp_path / "m", check=True)
    assert_same(found, random_checkpoint(found.provenance["seed"]))


def test_file_names_that_are_not_utf8_do_not_break_the_config(tmp_path: Path) -> None:
    checkpoint = replace(random_checkpoint(2), provenance={"file": os.fsdecode(b"model-\xff.ckpt")})
    save(checkpoint, tmp_path / "m")
    assert read(tmp_path / "m").provenance == {"file": "model-?.ckpt"}
