"""The download against a server on this machine that plays the bucket, with its worst manners."""

import base64
import json
import re
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c
import numpy as np
import pytest
from movi_files import write_movi

from slotmatch import data
from slotmatch.__main__ import main
from slotmatch.data import download

FOLDER = "tfds/movi_e/128x128/1.0.0"
SHARDS = [f"movi_e-train.tfrecord-{i:05d}-of-00003" for i in range(3)]
N_CLIPS = 5  # 1, 2 and 2 in the three shards


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    return [
        data.Clip(
            rng.integers(0, 256, (2, 8, 8, 3), np.uint8),
            rng.integers(0, 4, (2, 8, 8)).astype(np.int32),
            f"clip{i}",
        )
        for i in range(N_CLIPS)
    ]


@pytest.fixture(scope="module")
def published(clips, tmp_path_factory) -> dict[str, bytes]:
    """What the bucket holds, by name."""
    folder = write_movi(clips, tmp_path_factory.mktemp("bucket"), "movi_e", "train", 3)
    write_movi(clips[:1], folder.parents[2], "movi_e", "validation")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Bucket:
    """A server with the files of ``published``, and what goes wrong with each of them in turn."""

    def __init__(self, published: dict[str, bytes]) -> None:
        self.files = dict(published)
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.requests: list[tuple[str, str | None]] = []  # name, range
        self.headers: list[str] = []
        self.listed: dict[str, dict] = {}  # fields of the listing that are not true

    def items(self) -> list[dict]:
        return [
            {
                "name": f"{FOLDER}/{name}",
                "size": str(len(content)),
                "crc32c": base64.b64encode(
                    google_crc32c.value(content).to_bytes(4, "big")
                ).decode(),
            }
            | self.listed.get(name, {})
            for name, content in self.files.items()
        ]

    def shards_asked(self) -> list[str]:
        return [name for name, _ in self.requests if "tfrecord" in name]


def handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            """A test that passes says nothing."""

        def do_GET(self):
            bucket.headers += self.headers.keys()
            url = urlsplit(self.path)
            if url.path == "/storage/v1/b/kubric-public/o":
                self.answer(json.dumps(self.page(parse_qs(url.query))).encode())
            else:
                self.file(unquote(url.path).removeprefix(f"/kubric-public/{FOLDER}/"))

        def page(self, query):
            items = [i for i in bucket.items() if i["name"].startswith(query["prefix"][0])]
            start = int(query.get("pageToken", ["0"])[0])
            more = {"nextPageToken": str(start + 2)} if start + 2 < len(items) else {}
            return {"items": items[start : start + 2]} | more

        def file(self, name):
            asked = self.headers["Range"]
            bucket.requests.append((name, asked))
            fault, _, number = (
                bucket.faults[name].pop(0) if bucket.faults[name] else ""
            ).partition(" ")
            content = bucket.files.get(name)
            if fault == "status" or content is None:
                self.send_error(int(number or 404))
                return
            start = 0
            if asked and fault != "norange":
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if fault == "flip":
                content = bytes([content[0] ^ 1]) + content[1:]
            self.answer(content, start, int(number) if fault in ("cut", "norange") else None)

        def answer(self, content, start=0, stop=None):
            self.send_response(206 if start else 200)
            if start:
                span = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", span)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:stop])
            self.close_connection = True

    return Handler


@pytest.fixture
def bucket(published) -> Iterator[Bucket]:
    bucket = Bucket(published)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(bucket))
    bucket.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield bucket
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLOTMATCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data" / "movi_e" / "128x128" / "1.0.0"


def get(bucket, attempts=3, **options):
    server = download.Server(bucket.address, attempts=attempts, wait=0, timeout=5)
    planned = download.plan("movi_e", server=server, **options)
    download.fetch(planned, server=server)
    return planned


def names(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_everything_arrives_and_is_what_was_published(bucket, folder, published, clips):
    planned = get(bucket)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == published
    assert planned.needed == 0
    assert "Authorization" not in bucket.headers
    for clip, original in zip(data.open("movi_e", "train"), clips, strict=True):
        np.testing.assert_array_equal(clip.video, original.video)
        np.testing.assert_array_equal(clip.labels, original.labels)


def test_a_second_time_fetches_nothing(bucket):
    get(bucket)
    bucket.requests.clear()
    get(bucket)
    assert bucket.shards_asked() == []


@pytest.mark.parametrize(("n_videos", "shards"), [(1, 1), (2, 2), (3, 2), (4, 3), (99, 3)])
def test_a_taste_takes_only_the_shards_it_needs(bucket, folder, n_videos, shards):
    get(bucket, split="train", n_videos=n_videos)
    assert bucket.shards_asked() == SHARDS[:shards]
    n_videos = min(n_videos, N_CLIPS)
    assert len(data.open("movi_e", "train", n_videos=n_videos)) == n_videos


def test_a_cut_connection_goes_on_where_it_stopped(bucket, folder, published):
    bucket.faults[SHARDS[1]] = ["cut 100", "cut 350", "cut 351"]
    get(bucket, attempts=2)  # every attempt got further
    assert (folder / SHARDS[1]).read_bytes() == published[SHARDS[1]]
    asked = [span for name, span in bucket.requests if name == SHARDS[1]]
    assert asked == [None, "bytes=100-", "bytes=350-", "bytes=351-"]


def test_a_stopped_download_goes_on_where_it_stopped(bucket, folder, published):
    bucket.faults[SHARDS[1]] = ["cut 100"]
    with pytest.raises(OSError, match=r"ended after 100 of .* the same command goes on"):
        get(bucket, attempts=1)
    assert SHARDS[0] in names(folder)
    assert SHARDS[1] not in names(folder)
    bucket.requests.clear()
    planned = get(bucket)
    assert bucket.shards_asked()[:2] == [SHARDS[1], SHARDS[2]]
    assert (SHARDS[1], "bytes=100-") in bucket.requests
    assert planned.missing == ()
    assert (folder / SHARDS[1]).read_bytes() == published[SHARDS[1]]


def test_what_a_part_file_holds_counts_as_there(bucket, folder, published):
    server = download.Server(bucket.address)
    before = download.plan("movi_e", server=server).needed
    assert before == sum(map(len, published.values()))
    folder.mkdir(parents=True)
    (folder / f".{SHARDS[0]}.part").write_bytes(published[SHARDS[0]][:70])
    assert download.plan("movi_e", server=server).needed == before - 70


@pytest.mark.parametrize("left", [b"x" * 60, b"x" * 5000])
def test_a_part_file_of_something_else_does_no_harm(bucket, folder, published, left):
    folder.mkdir(parents=True)
    (folder / f".{SHARDS[0]}.part").write_bytes(left)
    get(bucket)
    assert (folder / SHARDS[0]).read_bytes() == published[SHARDS[0]]
    assert names(folder) == set(published)


def test_a_server_that_knows_no_ranges_starts_again(bucket, folder, published):
    bucket.faults[SHARDS[0]] = ["cut 100", "norange 200", "norange 9999999"]
    get(bucket)
    assert (folder / SHARDS[0]).read_bytes() == published[SHARDS[0]]


def test_it_gives_up_when_it_gets_no_further(bucket, folder):
    bucket.faults[SHARDS[0]] = ["norange 100"] * 50
    with pytest.raises(OSError, match="gave up after 3 attempts"):
        get(bucket)
    assert bucket.shards_asked() == [SHARDS[0]] * 3


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(bucket, folder, published, status):
    bucket.faults[SHARDS[0]] = [f"status {status}"] * 2
    get(bucket)
    assert (folder / SHARDS[0]).read_bytes() == published[SHARDS[0]]


@pytest.mark.parametrize("status", [404, 403])
def test_a_refusal_is_told_at_once(bucket, folder, status):
    bucket.faults[SHARDS[1]] = [f"status {status}"]
    with pytest.raises(OSError, match=rf"{SHARDS[1]}: the server answers {status}"):
        get(bucket)
    assert bucket.shards_asked() == SHARDS[:2]
    assert SHARDS[0] in names(folder)


def test_wrong_bytes_are_fetched_again(bucket, folder, published):
    bucket.faults[SHARDS[0]] = ["flip"]
    get(bucket)
    assert (folder / SHARDS[0]).read_bytes() == published[SHARDS[0]]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"crc32c": "AAAAAA=="}, r"does not have the checksum \(CRC32C\)"),
        ({"size": "100"}, r"does not have the size \(100 bytes\)"),
        ({"size": "99999"}, "the connection ended after .* of 99,999 bytes"),
    ],
)
def test_a_file_that_is_not_the_listed_one_is_never_kept(bucket, folder, listed, message):
    bucket.listed[SHARDS[0]] = listed
    with pytest.raises(OSError, match=message):
        get(bucket)
    assert SHARDS[0] not in names(folder)


def test_a_file_of_the_wrong_size_on_disk_is_fetched_again(bucket, folder, published):
    get(bucket)
    (folder / SHARDS[1]).write_bytes(published[SHARDS[1]][:-1])
    get(bucket)
    assert (folder / SHARDS[1]).read_bytes() == published[SHARDS[1]]


def test_too_small_a_disk_is_told_before_anything_is_fetched(bucket, folder, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"needs .* MB more and .* has 0.00 MB free.*--max-videos"):
        get(bucket)
    assert bucket.shards_asked() == []
    assert not folder.exists()


def test_a_disk_that_gets_full_loses_nothing(bucket, folder, published):
    folder.mkdir(parents=True)
    part = folder / f".{SHARDS[1]}.part"
    part.symlink_to("/dev/full")  # takes no byte, as a full disk does
    with pytest.raises(OSError, match=r"is full; what has arrived is kept: free .* again"):
        get(bucket)
    assert (folder / SHARDS[0]).read_bytes() == published[SHARDS[0]]
    part.unlink()
    get(bucket)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == published


def test_a_shard_that_the_bucket_lost_is_told_before_the_start(bucket, folder):
    del bucket.files[SHARDS[2]]
    with pytest.raises(FileNotFoundError, match=f"lacks 1 of the 4 shards.*{SHARDS[2]}"):
        get(bucket)
    get(bucket, split="train", n_videos=3)
    assert bucket.shards_asked() == SHARDS[:2]


def test_what_does_not_exist_is_told_in_seconds(bucket):
    server = download.Server(bucket.address)
    with pytest.raises(ValueError, match="movi_e has no split 'test'; choose from train, valid"):
        download.plan("movi_e", split="test", server=server)
    with pytest.raises(ValueError, match="'ovis' cannot be downloaded; choose from movi_a"):
        download.plan("ovis", server=server)
    with pytest.raises(FileNotFoundError, match=r"movi_a/128x128/1.0.0/ holds no dataset_info"):
        download.plan("movi_a", server=server)


def test_no_server_at_all(bucket):
    with pytest.raises(OSError, match=r"no connection.*gave up after 2 attempts"):
        download.plan("movi_e", server=download.Server("http://127.0.0.1:9", attempts=2, wait=0))


def test_the_wait_doubles_up_to_a_minute(bucket, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    server = download.Server("http://127.0.0.1:9", attempts=9)
    with pytest.raises(OSError, match="no connection"):
        download.plan("movi_e", server=server)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_command_tells_the_need_first_and_then_fetches(bucket, folder, capsys):
    command = ["data", "download", "movi_e", "--server", bucket.address]
    assert main([*command, "--split", "train", "--max-videos", "3"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("movi_e train (3 videos): 4 files, 0.0")
    assert re.search(r"to come: 4 files, 0\.\d+ MB; free on the disk of .*: \d+", first)
    assert last == f"all of it is in {folder}"
    assert main(["data", "movi_e", "--split", "train", "--videos", "3"]) == 0
    assert capsys.readouterr().out.startswith("movi_e train: 3 videos of 2x8x8 ")
    assert main([*command, "--split", "test"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("slotmatch data: movi_e has no split 'test'")
