"""Reading compressed tar files, with their checksum verified."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

CHUNK = 2**20  # bytes that are unpacked at a time


def read_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, in their order.

    Raises:
      ValueError: if the archive is missing or corrupt, possibly after the last file.
    """
    try:
        with (
            gzip.open(path) as unpacked,
            tarfile.open(fileobj=unpacked, mode="r:") as archive,
        ):
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    yield member.name, file.read()
            # At a corrupt header tarfile ends without an error; at the end of the file
            # gzip verifies the checksum.
            while unpacked.read(CHUNK):
                pass
    # A link to a file that the archive lacks is a KeyError.
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise ValueError(str(error)) from error
