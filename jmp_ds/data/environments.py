"""Read-only LMDB files: each is opened at most once per process, and never used across a fork."""

from __future__ import annotations

import os
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from jmp_ds.errors import UserError

# LMDB refuses to open a file twice in one process, and two stores may well share one; hence this table, which knows
# which files are open here. Its entries vanish with the last store that uses them.
_opened: WeakValueDictionary[tuple[int, int], lmdb.Environment] = WeakValueDictionary()
_owner = [os.getpid()]


def read_only(path: Path, *, readahead: bool = False) -> lmdb.Environment:
    """The environment of an LMDB file, shared with everyone in this process who asked before.

    Args:
        path: the file.
        readahead: let the system read more than what is asked for; who asks first in a process decides.

    Raises:
        UserError: the file cannot be opened as LMDB.
    """
    if _owner[0] != os.getpid():
        # This process was forked: what it inherited must not be used, and LMDB opens no file anew before it is closed.
        # Without locks and in read-only mode this closes our copy alone.
        for inherited in list(_opened.values()):
            inherited.close()
        _opened.clear()
        _owner[0] = os.getpid()
    try:
        stat = path.stat()
        key = (stat.st_dev, stat.st_ino)
        environment = _opened.get(key)
        if environment is None:
            environment = lmdb.open(
                str(path), subdir=False, readonly=True, lock=False, readahead=readahead, create=False
            )
            _opened[key] = environment
    except (lmdb.Error, OSError) as error:
        raise UserError(f"{path}: cannot be read as an LMDB file: {error}") from error
    return environment
