"""A file is written whole or not at all, and a disk that is full costs nothing that was saved."""

import errno
import os

import pytest

from mtpt.config import UserError
from mtpt.files import write


@pytest.fixture
def full(monkeypatch):
    """A disk on which a file can be begun and not filled: writes nine bytes, then fails."""

    class Disk:
        def __init__(self, handle, mode):
            self.file = os.fdopen(handle, mode)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            self.file.write(content[:9])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('mtpt.files.open', Disk, raising=False)


def test_a_file_holds_what_was_written_and_its_folder_is_made(tmp_path):
    for content in ('a ü\n\r\n', 'other', '', b'\0\xff'):
        write(tmp_path / 'a/b/file', content)
        expected = content if isinstance(content, bytes) else content.encode()
        assert (tmp_path / 'a/b/file').read_bytes() == expected
    write(tmp_path / 'half', 'x \ud83d')
    assert (tmp_path / 'half').read_bytes() == b'x ?'
    assert os.listdir(tmp_path / 'a/b') == ['file']


def test_what_is_there_already_is_not_written_again(tmp_path, full):
    (tmp_path / 'file').write_text('same')
    write(tmp_path / 'file', 'same')
    with pytest.raises(UserError):
        write(tmp_path / 'file', 'other')


def test_a_full_disk_leaves_what_was_saved_and_nothing_beside_it(tmp_path, full):
    path = tmp_path / 'file'
    path.write_text('saved before')
    with pytest.raises(UserError, match=r'cannot write .*file: No space left .*free some space'):
        write(path, 'a longer text than before')
    with pytest.raises(UserError, match='cannot write'):
        write(tmp_path / 'new', 'a longer text than before')
    assert path.read_text() == 'saved before' and os.listdir(tmp_path) == ['file']


def test_a_file_that_cannot_be_put_in_place_is_named(tmp_path):
    (tmp_path / 'folder/in').mkdir(parents=True)
    with pytest.raises(UserError, match='folder'):
        write(tmp_path / 'folder', 'x')
    with pytest.raises(UserError, match='cannot write'):
        write('/proc/no/such', 'x')
    assert sorted(os.listdir(tmp_path)) == ['folder']


def test_others_may_read_a_file_as_if_it_had_been_written_plainly(tmp_path):
    (tmp_path / 'plain').write_text('x')
    write(tmp_path / 'file', 'x')
    assert (tmp_path / 'file').stat().st_mode == (tmp_path / 'plain').stat().st_mode
