"""Places: URIs and paths, and objects of a store that throttles, fails and is killed."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sidrec.errors import ConfigError, ContractError, InstallationError
from sidrec.io import places
from sidrec.io.places import StoreError, StoreFile, StorePath, listed, place, put, remove, shown_uri
from tests.s3_server import Store


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("runs/shop", Path("runs/shop")),
        ("/data/a:b/c", Path("/data/a:b/c")),
        ("C:/data", Path("C:/data")),
        ("file:///data/x", Path("/data/x")),
        ("s3://bucket", StorePath("s3", "bucket", "")),
        ("s3://bucket/a//b/", StorePath("s3", "bucket", "a/b")),
        ("gs://b/x", StorePath("gs", "b", "x")),
        (
            "abfs://container@account.dfs.core.windows.net/x",
            StorePath("abfs", "container@account.dfs.core.windows.net", "x"),
        ),
        ("hdfs://host:9000/x", StorePath("hdfs", "host:9000", "x")),
    ],
)
def test_text_to_places(text: str, found: object) -> None:
    assert place(text) == found
    assert place(place(text)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s4://b/x", "s4://b/x: expected a local path or a URI of s3, "),
        ("s3:///x", "expected a bucket or container, as in s3://bucket/folder"),
        ("s3://name:word@b/x", "s3://***@b/x: expected no credentials in a URI"),
        ("s3://b/x?secret_key=word", "s3://b/x: expected a URI without options"),
        ("s3://b/../x", "expected a URI without .."),
    ],
)
def test_a_uri_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        place(text)
    assert "word" not in str(error.value)


def test_a_store_path_is_like_a_path() -> None:
    path = place("s3://bucket/a") / "log/b.parquet"
    assert str(path) == "s3://bucket/a/log/b.parquet"
    assert (path.name, path.suffix, str(path.parent)) == ("b.parquet", ".parquet", "s3://bucket/a/log")
    assert pickle.loads(pickle.dumps(path)) == path
    assert path.with_name("c") == place("s3://bucket/a/log/c")
    assert shown_uri(str(Path(str(path)))) == str(path)


def test_objects(bucket: StorePath, store: Store, tmp_path: Path) -> None:
    path = bucket / "a/b.bin"
    large = os.urandom(11 << 20)
    (tmp_path / "large").write_bytes(large)
    put(path, b"first")
    put(path, b"second")
    put(path.with_name("large"), tmp_path / "large")
    assert path.read_bytes() == b"second"
    assert path.with_name("large").read_bytes() == large
    assert (path.is_file(), path.parent.is_dir(), path.parent.is_file(), (path / "no").exists()) == (
        True,
        True,
        False,
        False,
    )
    assert listed(bucket) == [("a/b.bin", 6), ("a/large", len(large))]
    with StoreFile(path) as before:
        put(path, b"third!")
        with StoreFile(path) as after:
            assert before.version != after.version
    store.requests()
    remove(path)
    remove(path)
    assert listed(bucket) == [("a/large", len(large))]


@pytest.mark.parametrize("fault", [("*", "b.bin", 3, 503), ("GET", "b.bin", 2, "cut"), ("HEAD", "b.bin", 2, 500)])
def test_an_error_that_passes_is_repeated(
    fault: tuple[str, str, int, int | str], bucket: StorePath, store: Store
) -> None:
    path = bucket / "b.bin"
    put(path, b"content" * 99)
    store.faults(fault)
    store.requests()
    assert path.read_bytes() == b"content" * 99
    assert len(store.requests()) == 2 + fault[2]


def test_a_throttled_upload_is_repeated(bucket: StorePath, store: Store) -> None:
    store.faults(("PUT", "b.bin", 3, 503), ("POST", "large", 1, 500))
    put(bucket / "b.bin", b"content")
    assert (bucket / "b.bin").read_bytes() == b"content"
    large = os.urandom(11 << 20)
    put(bucket / "large", large)
    assert (bucket / "large").read_bytes() == large


def test_a_store_that_hangs_is_asked_again(bucket: StorePath, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "REQUEST_SECONDS", 1.0)
    places._filesystem.cache_clear()
    put(bucket / "b.bin", b"content")
    store.faults(("GET", "b.bin", 1, "stall"))
    assert (bucket / "b.bin").read_bytes() == b"content"
    places._filesystem.cache_clear()


def test_sentences(bucket: StorePath, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bucket / "b.bin", b"content")
    with pytest.raises(StoreError, match=f"{bucket}/none: expected an object that is there, got none"):
        (bucket / "none").read_bytes()
    with pytest.raises(
        StoreError, match=r"s3://no-bucket/x: expected an object that is there, got no bucket no-bucket"
    ):
        place("s3://no-bucket/x").read_bytes()
    with pytest.raises(StoreError, match=r"got no bucket no-bucket"):
        put(StorePath("s3", "no-bucket", "x"), b"1")
    store.faults(("*", "b.bin", 99, 503))
    monkeypatch.setattr(places, "ATTEMPTS", 2)
    with pytest.raises(
        StoreError, match=r"expected a store that answers within 2 attempts, got .*SLOW_DOWN|503"
    ) as error:
        put(bucket / "b.bin", b"1")
    assert "secret-of-tests" not in str(error.value)
    store.faults()
    assert isinstance(pickle.loads(pickle.dumps(error.value)), ContractError)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    places._filesystem.cache_clear()
    store.requests()
    with pytest.raises(StoreError, match=r"credentials that may do this \(AWS_ACCESS_KEY_ID and .*got access denied"):
        (bucket / "b.bin").read_bytes()
    assert len(store.requests()) == 1


def test_a_store_that_cannot_be_opened_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(
        StoreError, match=r"abfs://c/x: expected a store of abfs:// that this machine can open, got .*acc"
    ):
        place("abfs://c/x").exists()


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(InstallationError, match=r"az://c/x: expected the package adlfs, .*; pip install adlfs"):
        place("az://c/x").exists()


UPLOAD = """
import sys
from sidrec.io.places import place, put
put(place(sys.argv[1]), bytes(64 << 20))
"""


def test_a_killed_upload_leaves_the_old_object(bucket: StorePath, store: Store) -> None:
    put(bucket / "large", b"old")
    store.requests()
    store.faults(("POST", "large?uploadId", 1, "stall"))
    process = subprocess.Popen([sys.executable, "-c", UPLOAD, f"{bucket}/large"])
    deadline = time.monotonic() + 60
    sent: list[str] = []
    while not any("PUT" in request for request in sent) and time.monotonic() < deadline:
        sent += store.requests()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any("partNumber" in request for request in sent)
    assert (bucket / "large").read_bytes() == b"old"
