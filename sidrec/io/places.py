"""Places: local paths, and objects of stores by URI, read and written whole or by ranges.

    place("runs/shop")             -> Path
    place("s3://bucket/shop/log")  -> StorePath

A command's argument or recipe key of type `Place` takes both; one of type `Path` takes local paths alone, and a URI
there is refused by the argument's name (`refusal_of_uri`). Stores are reached through pyarrow.fs, and through fsspec
where pyarrow lacks the scheme. Credentials come from the environment of the process (docs/stores.md): a URI that holds
any is refused, and no message repeats them.

A store has no rename. An object appears when its upload has ended, whole; a folder is committed by an object that is
written last. Each request is repeated after an error that may pass: ATTEMPTS times in all, with waits that double from
FIRST_WAIT to LONGEST_WAIT seconds, shortened by up to a half at random.
"""

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from sidrec.errors import ConfigError, ContractError, InstallationError

if TYPE_CHECKING:  # pyarrow takes long to import, and most commands read no store
    import pyarrow.fs as pa_fs

T = TypeVar("T")

ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 10, 0.2, 10.0
CONNECT_SECONDS, REQUEST_SECONDS = 10.0, 60.0
BLOCK = 8 << 20  # bytes of one request
URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?://|/)(.*)", re.DOTALL)
"""Also with one slash, as pathlib writes a URI."""
ARROW = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "abfss": "abfs", "hdfs": "hdfs"}
"""Scheme -> the file system of pyarrow that reads it."""
FSSPEC = {"az": "adlfs", "oss": "ossfs", "oci": "ocifs"}
"""Scheme -> the package that fsspec reads it with."""
SCHEMES = (*ARROW, *FSSPEC, "file")
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role of the machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or a service account of the machine",
    "abfs": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_KEY, or an identity of the machine",
    "hdfs": "a Kerberos ticket",
}
DENIED = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "EXPIRED_TOKEN",
    "UNRECOGNIZED_CLIENT",
    "INVALID_CLIENT_TOKEN_ID",
    "MISSING_AUTHENTICATION_TOKEN",
    "HTTP status 401",
    "HTTP status 403",
    "Permission denied",
    "Failed to get token",
    "access token",
    "AuthenticationFailed",
    "AuthorizationFailure",
)
"""In errors about credentials, which no attempt mends."""


class StoreError(ContractError):
    """A place in a store that cannot be read or written; the message says what to do."""


class StorePath:
    """A place in a store: an object or a folder. Has the methods of pathlib's paths that sidrec needs.

    scheme: one of ARROW or FSSPEC. authority: bucket, container or host. key: path inside it, without slashes at its
    ends.
    """

    __slots__ = ("authority", "key", "scheme")

    def __init__(self, scheme: str, authority: str, key: str) -> None:
        self.scheme, self.authority, self.key = scheme, authority, key.strip("/")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}/{self.key}".rstrip("/")

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and str(self) == str(other)

    def __lt__(self, other: object) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return StorePath, (self.scheme, self.authority, self.key)

    def __truediv__(self, name: "str | os.PathLike[str]") -> "StorePath":
        return StorePath(self.scheme, self.authority, str(PurePosixPath(self.key) / name))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2] or self.authority

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "StorePath":
        return StorePath(self.scheme, self.authority, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> "StorePath":
        return self.parent / name

    def resolve(self) -> "StorePath":
        return self

    def is_file(self) -> bool:
        """Whether there is such an object. Raises StoreError if the store does not answer."""
        return _info(self).is_file

    def exists(self) -> bool:
        """Whether there is such an object, or one below it. Raises StoreError if the store does not answer."""
        return _info(self).type.name != "NotFound"

    def is_dir(self) -> bool:
        """Whether there are objects below it. Raises StoreError if the store does not answer."""
        return _info(self).type.name == "Directory"

    def is_char_device(self) -> bool:
        return False

    def read_bytes(self) -> bytes:
        """The whole object. Raises StoreError; it is a FileNotFoundError's sentence if there is none."""
        with StoreFile(self) as file:
            return b"".join(file.blocks())


Place: TypeAlias = Path | StorePath


# Text to places.


def place(text: "str | Place") -> Place:
    """The place that a user named. Raises ConfigError for an unknown scheme, and for a URI without a bucket or with
    credentials, query or fragment."""
    if isinstance(text, StorePath) or (found := URI.fullmatch(str(text))) is None:
        return text if isinstance(text, StorePath | Path) else Path(text)
    scheme, shown = found[1].lower(), shown_uri(str(text))
    if scheme == "file":
        return Path("/", found[2].lstrip("/"))
    if scheme not in SCHEMES:
        raise ConfigError(f"{shown}: expected a local path or a URI of {', '.join(SCHEMES)}, got the scheme {scheme}")
    authority, _, key = found[2].partition("/")
    if not authority:
        raise ConfigError(f"{shown}: expected a bucket or container, as in {scheme}://bucket/folder, got none")
    if ":" in authority.rpartition("@")[0] or (scheme in ("s3", "s3a", "gs", "gcs") and "@" in authority):
        raise ConfigError(f"{shown}: expected no credentials in a URI, got some; give them by the environment")
    if scheme not in FSSPEC and re.search(r"[?#]", found[2]):
        raise ConfigError(f"{shown}: expected a URI without options, got some behind a ? or #")
    if ".." in key.split("/"):
        raise ConfigError(f"{shown}: expected a URI without .., got one with it")
    return StorePath(scheme, authority, re.sub("/+", "/", key))


def is_uri(value: object) -> bool:
    """Whether a path or text is a URI, also one that pathlib has shortened to `s3:/bucket`. `C:/` is none."""
    return isinstance(value, str | Path) and URI.fullmatch(str(value)) is not None


def shown_uri(text: str) -> str:
    """A URI for messages: two slashes again, no user and password, no query."""
    found = URI.fullmatch(text)
    if found is None:
        return text
    rest = found[2].lstrip("/").partition("?")[0].partition("#")[0]
    authority, slash, key = rest.partition("/")
    user, at, host = authority.rpartition("@")
    hidden = at and (":" in user or found[1].lower() not in ("abfs", "abfss", "az"))
    return f"{found[1]}://{'***@' + host if hidden else authority}{slash}{key}"


def refusal_of_uri(name: str, value: object) -> str:
    """The sentence about a URI where only a local path will do. name: of the argument or key."""
    uri = shown_uri(str(value))
    if uri.lower().startswith("file:"):
        return f"{name}: takes a local path, got {uri}; write it as a path, without file://"
    return f"{name}: takes a local path, got {uri}; copy it first"


def local_path(found: Place, name: str) -> Path:
    """The place, if it is local. Raises ConfigError. name: of the argument or key."""
    if isinstance(found, StorePath):
        raise ConfigError(refusal_of_uri(name, found))
    return found


# File systems.


@lru_cache(maxsize=64)
def _filesystem(scheme: str, authority: str) -> "tuple[pa_fs.FileSystem, str]":
    """The file system of a store, and what precedes a key in its paths. One for each process and authority."""
    import pyarrow.fs as pa_fs

    kind = ARROW.get(scheme)
    environment = os.environ.get
    if kind == "s3":
        endpoint = environment("AWS_ENDPOINT_URL_S3") or environment("AWS_ENDPOINT_URL")
        region = environment("AWS_REGION") or environment("AWS_DEFAULT_REGION")
        settings: dict[str, Any] = {"endpoint_override": endpoint} if endpoint else {}
        settings |= {"region": region} if region else {}
        return pa_fs.S3FileSystem(
            connect_timeout=CONNECT_SECONDS,
            request_timeout=REQUEST_SECONDS,
            retry_strategy=pa_fs.AwsStandardS3RetryStrategy(max_attempts=1),  # `_retried` repeats
            anonymous=environment("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "true", "yes"),
            allow_delayed_open=True,  # small objects are one request
            **settings,
        ), f"{authority}/"
    if kind == "gs":
        from datetime import timedelta

        return pa_fs.GcsFileSystem(retry_time_limit=timedelta(seconds=CONNECT_SECONDS)), f"{authority}/"
    if kind == "abfs":
        container, _, host = authority.rpartition("@")
        account = host.partition(".")[0] if container else environment("AZURE_STORAGE_ACCOUNT_NAME", "")
        key = environment("AZURE_STORAGE_KEY") or None
        return pa_fs.AzureFileSystem(account, account_key=key), f"{container or host}/"
    if kind == "hdfs":
        host, _, port = authority.partition(":")
        return pa_fs.HadoopFileSystem(host, int(port or 8020)), "/"
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(f"{scheme}://{authority}/")
    return pa_fs.PyFileSystem(pa_fs.FSSpecHandler(filesystem)), f"{root.rstrip('/')}/"


def _at(path: StorePath) -> "tuple[pa_fs.FileSystem, str]":
    """A file system, and the path in it. Raises StoreError or InstallationError."""
    try:
        filesystem, before = _filesystem(path.scheme, path.authority)
    except ImportError:
        package = FSSPEC.get(path.scheme, "pyarrow")
        expected = f"{path}: expected the package {package}, which reads {path.scheme}://, got none"
        raise InstallationError(f"{expected}; pip install {package}") from None
    except (OSError, ValueError) as error:
        raise StoreError(path, f"a store of {path.scheme}:// that this machine can open", _plain(str(error))) from None
    return filesystem, f"{before}{path.key}"


def _retried(path: StorePath, act: Callable[[], T]) -> T:
    """The result of a request. Raises StoreError after the last attempt, and at once for errors that will not pass."""
    import pyarrow as pa

    failures = (OSError, pa.ArrowException) if path.scheme in ARROW else Exception  # other packages have their own
    for attempt in range(ATTEMPTS):
        try:
            return act()
        except failures as error:
            final = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
            if final or attempt == ATTEMPTS - 1 or any(word in str(error) for word in (*DENIED, "NO_SUCH_BUCKET")):
                raise _explained(path, error) from None
        time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0))
    raise AssertionError("the last attempt returns or raises")


def _explained(path: StorePath, error: Exception) -> StoreError:
    text = str(error)
    if isinstance(error, FileNotFoundError) or "NO_SUCH_BUCKET" in text:
        missing = "NO_SUCH_BUCKET" in text or not _bucket_exists(path)
        return StoreError(path, "an object that is there", f"no bucket {path.authority}" if missing else "none")
    if isinstance(error, PermissionError) or any(word in text for word in DENIED):
        given = CREDENTIALS.get(ARROW.get(path.scheme, ""), "those of the store's package")
        return StoreError(path, f"credentials that may do this ({given})", "access denied")
    return StoreError(path, f"a store that answers within {ATTEMPTS} attempts", _plain(text))


def _bucket_exists(path: StorePath) -> bool:
    try:
        filesystem, _ = _filesystem(path.scheme, path.authority)
        if ARROW.get(path.scheme) == "hdfs":
            return True
        bucket = path.authority.rpartition("@")[0] or path.authority
        return filesystem.get_file_info(bucket).type.name != "NotFound"
    except (OSError, ValueError):
        return True


def _plain(text: str) -> str:
    """An error's text without the values of variables that hold secrets."""
    for name, value in os.environ.items():
        if len(value) >= 4 and re.search("KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", name):
            text = text.replace(value, "***")
    return " ".join(text.split())


# Reading.


def _info(path: StorePath) -> "pa_fs.FileInfo":
    filesystem, inside = _at(path)
    return _retried(path, lambda: filesystem.get_file_info(inside))


class StoreFile:
    """An object that is read by ranges, from any thread; each request is repeated after errors.

    size: bytes. version: text that changes when the object is replaced. Raises StoreError if it is not there.
    """

    def __init__(self, path: StorePath) -> None:
        self.path = path
        filesystem, inside = _at(path)

        def opened() -> Any:
            file = filesystem.open_input_file(inside)
            return file, file.size(), file.metadata()

        self._file, self.size, facts = _retried(path, opened)
        named = {_text(key).lower(): _text(value) for key, value in (facts or {}).items()}
        self.version = named.get("etag") or _changed_at(path)

    def read(self, first: int, count: int) -> bytes:
        """`count` bytes from `first` on. Raises StoreError."""

        def act() -> bytes:
            found = self._file.read_at(count, first)
            if len(found) != count:
                raise OSError(f"{len(found)} bytes of {count}")
            return found

        return _retried(self.path, act)

    def blocks(self) -> Iterator[bytes]:
        """The bytes of the object, a BLOCK at a time."""
        for first in range(0, self.size, BLOCK):
            yield self.read(first, min(BLOCK, self.size - first))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "StoreFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def _changed_at(path: StorePath) -> str:
    info = _info(path)
    return f"{info.size} {info.mtime_ns}"


def blocks_of(path: Place) -> Iterator[bytes]:
    """The bytes of a file or object, a BLOCK at a time. Raises OSError or StoreError."""
    if isinstance(path, StorePath):
        with StoreFile(path) as stored:
            yield from stored.blocks()
        return
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


class Entry(NamedTuple):
    """An object below a folder. name: relative to the folder, with slashes."""

    name: str
    size: int


def listed(folder: StorePath) -> list[Entry]:
    """All objects below a folder, sorted by name; none if there is no such folder. Raises StoreError."""
    import pyarrow.fs as pa_fs

    filesystem, inside = _at(folder)
    selector = pa_fs.FileSelector(inside, recursive=True, allow_not_found=True)
    found = _retried(folder, lambda: filesystem.get_file_info(selector))
    return sorted(Entry(info.path[len(inside) :].strip("/"), info.size) for info in found if info.is_file)


# Writing.


def put(path: StorePath, content: bytes | Path) -> None:
    """Writes an object in one step: readers see the old one or the new one, whole. content: bytes, or a local file.

    Raises StoreError; then the old object is still there, or the new one is there whole.
    """
    filesystem, inside = _at(path)
    size = len(content) if isinstance(content, bytes) else content.stat().st_size

    def act() -> None:
        # pyarrow completes the upload when its stream is closed, also by an error: nothing here fails but requests.
        with filesystem.open_output_stream(inside) as stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                for block in blocks_of(content):
                    stream.write(block)

    _retried(path, act)
    found = _info(path)
    if not found.is_file or found.size != size:
        raise StoreError(path, f"the {size:,} bytes that were written", f"{found.size or 0:,} bytes there")


def remove(path: StorePath) -> None:
    """Removes an object; does nothing if there is none. Raises StoreError."""
    filesystem, inside = _at(path)

    def act() -> None:
        try:
            filesystem.delete_file(inside)
        except FileNotFoundError:
            return

    _retried(path, act)
