"""Kills, full disks and crowds: the folder holds the old artifact or the new one, whole."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.store import files
from lissom.rewrite.store.files import write_file, write_folder
from lissom.rewrite.store.folder import load, save


def model(value: float, width: int = 8) -> fx.GraphModule:
    layer = nn.Linear(width, width)
    with torch.no_grad():
        layer.weight.fill_(value)
        layer.bias.fill_(value)
    return fx.symbolic_trace(nn.Sequential(layer).eval())


def value_of(folder: Path) -> float:
    """The one number all weights of `model` have; load has checked the rest."""
    numbers = torch.cat([p.detach().flatten() for p in load(folder).module.parameters()]).unique()
    assert len(numbers) == 1
    return float(numbers[0])


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


# -- replacing -------------------------------------------------------------------------------------


def test_an_artifact_is_replaced_whole(tmp_path: Path) -> None:
    save(model(1), tmp_path / "a", {"plan.json": b"{}"})
    save(model(2), tmp_path / "a")
    assert value_of(tmp_path / "a") == 2
    assert not (tmp_path / "a" / "plan.json").exists()
    assert os.listdir(tmp_path) == ["a"]


def test_replacing_works_without_the_system_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange_in_one_step", lambda new, target: False)
    for value in (1, 2, 3):
        save(model(value), tmp_path / "a")
        assert value_of(tmp_path / "a") == value
        assert os.listdir(tmp_path) == ["a"]


def test_a_save_that_died_between_two_renames_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(model(1), tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / ".a.lissom-old")
    with pytest.raises(LissomError, match=r"A020(.|\n)*\.a\.lissom-old"):
        load(tmp_path / "a")

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "_write_new", full)
    with pytest.raises(LissomError, match=r"A002(.|\n)*No space left on device"):
        save(model(2), tmp_path / "a")
    assert value_of(tmp_path / "a") == 1
    assert os.listdir(tmp_path) == ["a"]


def test_a_linked_folder_is_replaced_where_it_is(tmp_path: Path) -> None:
    save(model(1), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(model(2), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert value_of(tmp_path / "real") == 2


def test_other_peoples_files_are_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(LissomError, match=r"A003(.|\n)*thesis\.txt"):
        save(model(1), mine)
    save(model(1), tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("kept")
    with pytest.raises(LissomError, match=r"A003(.|\n)*notes\.txt"):
        save(model(2), tmp_path / "a")
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "a" / "notes.txt").read_text() == "kept"
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(LissomError, match="A003"):
        save(model(1), file)
    assert file.read_text() == "kept"


def test_missing_parents_are_made_and_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save(model(1), tmp_path / "empty")
    save(model(2), tmp_path / "x" / "y" / "z")
    assert value_of(tmp_path / "empty") == 1
    assert value_of(tmp_path / "x" / "y" / "z") == 2


def test_a_path_through_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LissomError, match=r"A002(.|\n)*= help: "):
        save(model(1), tmp_path / "file" / "a")


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """I54."""
    write_file(tmp_path / "report.html", b"old")
    write_file(tmp_path / "report.html", b"new")
    assert (tmp_path / "report.html").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["report.html"]
    with pytest.raises(LissomError, match=r"U005(.|\n)*not a regular file"):
        write_file(Path("/dev/null"), b"")
    assert Path("/dev/null").is_char_device()


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for mode in (0o640, 0o755, 0o400):
        path.write_bytes(b"old")
        path.chmod(mode)
        write_file(path, b"new")
        assert path.read_bytes() == b"new"
        assert stat.S_IMODE(path.stat().st_mode) == mode
        path.unlink()


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_file(tmp_path / "ours", b"")
    (tmp_path / "theirs").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_a_linked_file_is_replaced_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_bytes(b"old")
    (tmp_path / "link").symlink_to(Path("real") / "f")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "f").read_bytes() == b"new"
    assert leftovers(tmp_path) == leftovers(tmp_path / "real") == []


def test_links_in_a_circle_are_a_clear_error(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).symlink_to(tmp_path / other)
    with pytest.raises(LissomError, match=r"U005(.|\n)*= help: "):
        write_file(tmp_path / "a", b"new")
    with pytest.raises(LissomError, match=r"A002(.|\n)*= help: "):
        save(model(1), tmp_path / "a")


def test_files_are_written_where_nothing_can_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    (tmp_path / ".lissom-tmp-0123456789abcdef").mkdir()
    write_file(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert leftovers(tmp_path) == [".lissom-tmp-0123456789abcdef"]


# -- full disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 100, 4096, 200_000])
def test_a_full_disk_keeps_the_old_artifact(limit: int, tmp_path: Path) -> None:
    """H26."""
    save(model(1), tmp_path / "a")
    write_file(tmp_path / "f", b"old")
    big = model(2, 300)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(LissomError, match=r"A002(.|\n)*nothing at the target was changed"):
            save(big, tmp_path / "a")
        with pytest.raises(LissomError, match="U005"):
            write_file(tmp_path / "f", b"x" * 300_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert value_of(tmp_path / "a") == 1
    assert (tmp_path / "f").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["a", "f"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_parent_is_a_clear_error(tmp_path: Path) -> None:
    """H26."""
    save(model(1), tmp_path / "a")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(LissomError, match="A002"):
            save(model(2), tmp_path / "a")
    finally:
        tmp_path.chmod(0o700)
    assert value_of(tmp_path / "a") == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody may write to")
def test_a_place_nobody_may_write_to_is_a_clear_error() -> None:
    """H26."""
    with pytest.raises(LissomError, match=r"A002(.|\n)*/proc/lissom(.|\n)*= help: "):
        save(model(1), Path("/proc/lissom/a"))


def test_ctrl_c_while_writing_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H28."""
    save(model(1), tmp_path / "a")

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_flush_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(model(2), tmp_path / "a")
    assert value_of(tmp_path / "a") == 1
    assert os.listdir(tmp_path) == ["a"]


# -- kills and crowds ------------------------------------------------------------------------------

# Only the standard library is imported before the loop, so that a kill soon lands in a write.
_WRITER = """
import sys, types
package = types.ModuleType("lissom"); package.__path__ = [sys.argv[1]]
sys.modules["lissom"] = package
floor = types.ModuleType("lissom.rewrite"); floor.__path__ = [sys.argv[1] + "/rewrite"]
sys.modules["lissom.rewrite"] = floor
from pathlib import Path
from lissom.rewrite.store.files import write_folder
print("ready", flush=True)
for number in range(int(sys.argv[3]), 10**9, 2):
    data = b"%d" % number
    write_folder(Path(sys.argv[2]), {name: data * 20_000 for name in "abc"})
"""


def writer(folder: Path, start: int = 0) -> subprocess.Popen[bytes]:
    package = Path(files.__file__).parents[2]
    command = [sys.executable, "-c", _WRITER, str(package), str(folder), str(start)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def require_whole(folder: Path) -> None:
    contents = {(folder / name).read_bytes() for name in sorted(os.listdir(folder))}
    assert sorted(os.listdir(folder)) == ["a", "b", "c"]
    assert len(contents) == 1
    assert len(contents.pop()) >= 20_000


def test_kill_at_any_moment_leaves_one_whole_folder(tmp_path: Path) -> None:
    """H26."""
    target = tmp_path / "a"
    write_folder(target, dict.fromkeys("abc", b"z" * 20_000))
    seen = 0
    for round_number in range(20):
        process = writer(target)
        time.sleep(0.02 + 0.007 * round_number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen += len(leftovers(tmp_path))
        require_whole(target)
    # Some kills must have landed inside a write, and the next write must have cleaned up.
    assert seen > 0
    write_folder(target, dict.fromkeys("abc", b"z" * 20_000))
    require_whole(target)
    assert os.listdir(tmp_path) == ["a"]


def test_two_writers_and_a_reader_never_see_a_mixture(tmp_path: Path) -> None:
    """H26."""
    target = tmp_path / "a"
    write_folder(target, dict.fromkeys("abc", b"z" * 20_000))
    crowd = [writer(target, start) for start in (0, 1)]
    try:
        for _ in range(50):
            descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
            time.sleep(0.002)
            os.close(descriptor)
            assert target.is_dir()
            assert all(process.poll() is None for process in crowd)
    finally:
        for process in crowd:
            process.kill()
            process.wait()
    require_whole(target)


def test_a_living_writers_folder_is_left_alone(tmp_path: Path) -> None:
    """H26."""
    with files._temporary_folder(tmp_path) as other:
        (other / "half").write_bytes(b"half")
        write_file(tmp_path / "f", b"new")
        assert (other / "half").exists()
    abandoned = tmp_path / ".lissom-tmp-0123456789abcdef"
    abandoned.mkdir()
    (tmp_path / ".lissom-tmp-mine").mkdir()
    write_file(tmp_path / "f", b"newer")
    assert not abandoned.exists()
    shutil.rmtree(tmp_path / ".lissom-tmp-mine")
