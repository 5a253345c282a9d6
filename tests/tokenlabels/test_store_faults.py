"""What goes wrong in stores is one sentence that says what to do, whatever a library raises."""

from __future__ import annotations

import errno
import http.server
import json
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import pytest
from botocore import exceptions as s3
from gcsfs.retry import HttpError
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from helpers import fine, one_error_line
from stores import failing_store, s3_server, store
from typer.main import get_command
from typer.testing import CliRunner, Result

from cli.bavit import app as bavit
from tokenlabels.errors import TokenLabelsError
from tokenlabels.storage import located
from tokenlabels.store_faults import as_os_error, explained, is_store_fault, reason_of

Invoke = Callable[..., Result]


def caused(fault: BaseException, cause: BaseException) -> BaseException:
    fault.__cause__ = cause
    return fault


def answered(code: str) -> s3.ClientError:
    return s3.ClientError({"Error": {"Code": code, "Message": "..."}}, "PutObject")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (s3.NoCredentialsError(), "no valid credentials"),
        (s3.PartialCredentialsError(provider="env", cred_var="x"), "no valid credentials"),
        (DefaultCredentialsError("set up"), "no valid credentials"),  # type: ignore[no-untyped-call]
        (RefreshError("expired"), "no valid credentials"),  # type: ignore[no-untyped-call]
        (HttpError({"code": 401, "message": "Anonymous caller"}), "no valid credentials"),
        (caused(PermissionError("Forbidden"), answered("InvalidAccessKeyId")), "no valid credentials"),
        (PermissionError("Access Denied"), "access is denied"),
        (OSError("Forbidden: https://there\nno"), "access is denied"),
        (caused(FileNotFoundError("The bucket"), answered("NoSuchBucket")), "the bucket does not exist"),
        (s3.EndpointConnectionError(endpoint_url="http://there"), "cannot be reached"),
        (s3.ConnectTimeoutError(endpoint_url="http://there"), "cannot be reached"),
        (s3.ReadTimeoutError(endpoint_url="http://there"), "does not answer"),
        (fsspec.exceptions.FSTimeoutError(), "does not answer"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("3 of 6 bytes arrived"), "3 of 6 bytes arrived"),
        (OSError(), "OSError"),
    ],
)
def test_every_fault_has_a_reason(fault: BaseException, said: str) -> None:
    assert said in reason_of(fault)
    with pytest.raises(OSError) as caught, as_os_error():
        raise fault
    assert said in str(caught.value.strerror)
    assert type(fault).__module__ != "builtins" or caught.value is fault  # FileNotFoundError stays what it is


def test_bugs_are_not_called_faults_of_a_store(tmp_path: Path) -> None:
    assert not is_store_fault(ZeroDivisionError())
    for words in (as_os_error(), explained()):
        with pytest.raises(ZeroDivisionError), words:
            raise ZeroDivisionError
    with pytest.raises(FileNotFoundError), explained(tmp_path):
        (tmp_path / "none").read_bytes()
    place = located("memory://there")
    with pytest.raises(TokenLabelsError, match=r"^memory://there: cannot be used \(access is denied"), explained(place):
        raise PermissionError("Access Denied")
    with pytest.raises(TokenLabelsError, match=r"^a store: cannot be used \(no valid credentials"), explained():
        raise s3.NoCredentialsError


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as address:
        yield address


BUILD = ("build", "coco", "--root", "SAMPLE", "--out")


@pytest.mark.parametrize(
    ("code", "named", "words"),
    [
        (1, ("s3://nowhere/out", "bucket does not exist"), (*BUILD, "s3://nowhere/out")),
        (1, ("s3://nowhere/data", "bucket does not exist"), ("build", "coco", "--root", "s3://nowhere/data")),
        (1, ("s3://nowhere/data", "bucket does not exist"), ("build", "voc", "--root", "s3://nowhere/data")),
        (1, ("s3://nowhere/data", "bucket does not exist"), ("build", "semantic", "--root", "s3://nowhere/data")),
        (1, ("s3://labels/none", "annotations/instances_*.json"), ("build", "coco", "--root", "s3://labels/none")),
        (1, ("s3://labels/none", "no such folder"), ("build", "voc", "--root", "s3://labels/none")),
        (1, ("s3://labels/a.json", "no such file"), ("build", "coco", "--annotations", "s3://labels/a.json")),
        (1, ("s3://labels/foreign", "holds no build", "notes"), (*BUILD, "s3://labels/foreign")),
        (1, ("s3://labels/foreign/notes", "is a file"), (*BUILD, "s3://labels/foreign/notes")),
        (1, ("s3://labels/none", "no such folder"), ("verify", "s3://labels/none")),
        (1, ("s3://labels/foreign", "holds no build"), ("stats", "s3://labels/foreign")),
        (2, ("s3:///out", "names no bucket"), (*BUILD, "s3:///out")),
        (2, ("store://a/b", "s3://"), (*BUILD, "store://a/b")),
        (2, ("memory://here", "one worker"), (*BUILD, "memory://here", "--workers", "2")),
        (2, ("--output", "s3://labels/a.png", "disk"), ("show", "s3://labels/x", "1", "-o", "s3://labels/a.png")),
        (2, ("--html", "s3://labels/a.html", "disk"), ("stats", "s3://labels/x", "--html", "s3://labels/a.html")),
        (2, ("s3://labels/sample", "disk"), ("sample", "s3://labels/sample")),
    ],
)  # fmt: skip
def test_a_place_that_cannot_be_used(
    code: int, named: tuple[str, ...], words: tuple[str, ...], bucket: str, invoke: Invoke, sample_root: Path
) -> None:
    store(f"{bucket}/foreign/notes").fs.pipe_file("labels/foreign/notes", b"mine")
    found = invoke(*(sample_root if word == "SAMPLE" else word for word in words))
    assert found.exit_code == code
    one_error_line(found.stderr, *named)
    assert set(store(bucket).fs.find("labels")) == {"labels/foreign/notes"}


@pytest.mark.parametrize("words", [(*BUILD, "{}"), ("build", "voc", "--root", "{}"), ("verify", "{}")])
@pytest.mark.parametrize("kind", ["no credentials", "unreachable"])
def test_a_store_that_nobody_may_or_can_ask(
    kind: str,
    words: tuple[str, ...],
    bucket: str,
    invoke: Invoke,
    sample_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from s3fs import S3FileSystem

    if kind == "unreachable":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    else:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    S3FileSystem.clear_instance_cache()
    found = invoke(*(sample_root if word == "SAMPLE" else word.format("s3://labels/there") for word in words))
    S3FileSystem.clear_instance_cache()
    assert found.exit_code == 1
    one_error_line(
        found.stderr, "s3://labels/there", "AWS_ACCESS_KEY_ID" if kind == "no credentials" else "AWS_ENDPOINT_URL"
    )


@pytest.mark.parametrize(("protocol", "package", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")])
def test_a_package_that_is_missing(
    protocol: str, package: str, extra: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(import_module("fsspec.registry")._registry, protocol, raising=False)
    found = invoke("verify", f"{protocol}://labels/out")
    assert found.exit_code == 1
    one_error_line(found.stderr, f"pip install 'tokenlabels[{extra}]'")


def test_commands_that_write_runs_take_no_address_for_them(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.testing._get_command", get_command)
    found = CliRunner().invoke(bavit, ["train", f"{bucket}/out", "--out", f"{bucket}/run"])
    assert found.exit_code == 2
    one_error_line(found.stderr, f"--out {bucket}/run", "disk")


@pytest.mark.parametrize("fault", [PermissionError("Access Denied"), s3.EndpointConnectionError(endpoint_url="x")])
def test_a_bucket_that_cannot_be_written(fault: Exception, invoke: Invoke, sample_root: Path) -> None:
    words = ("build", "coco", "--root", sample_root, "--out", "memory://there/out")
    with failing_store() as fail:
        fail(1, fault)
        found = invoke(*words)
        assert found.exit_code == 1
        one_error_line(found.stderr, "memory://there/out/.build/parameters.json: cannot be written", "run again")
        fail(0)
        fine(invoke(*words))


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Google's store as those see it who have no credentials."""

    def do_GET(self) -> None:
        message = {"error": {"code": 401, "message": "Anonymous caller does not have storage.objects.list access."}}
        content = json.dumps(message).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def test_google_s_store_is_asked_and_refuses(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    place = store("gs://labels/out")
    assert type(place.fs).__module__.startswith("gcsfs")
    found = invoke("verify", "gs://labels/out")
    server.shutdown()
    server.server_close()
    type(place.fs).clear_instance_cache()
    assert found.exit_code == 1
    one_error_line(found.stderr, "gs://labels/out", "GOOGLE_APPLICATION_CREDENTIALS")
