"""What an archive run has to do: files of object stores, and one name for each."""

from __future__ import annotations

import pytest

from adafocus_edge.errors import UsageError
from adafocus_edge.media import remote, sources
from adafocus_edge.media.sources import find_sources
from adafocus_edge.runtime.archive.run import expanded


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an object store in memory, with six files in folders whose names look like secrets."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(sources, "REMOTE_SCHEMES", sources.REMOTE_SCHEMES | {"memory"})
    store = fsspec.filesystem("memory")
    for folder in ("session=0", "session=1", "token=a@b"):
        for number in range(2):
            store.pipe(f"/bucket/{folder}/clip{number}.mp4", b"")
    return "memory:///bucket"


def test_files_of_an_object_store_keep_their_whole_names(bucket):
    found = expanded(find_sources([bucket, f"{bucket}/session=0", f"{bucket}/session=1"]))
    assert [source.name for source in found] == [source.address for source in found]
    assert [source.name.removeprefix(f"{bucket}/") for source in found] == [
        f"{folder}/clip{number}.mp4" for folder in ("session=0", "session=1", "token=a@b") for number in range(2)
    ]
    assert remote.USER.sub("", "hdfs://ann:secret@host:9000/a@b.mp4") == "hdfs://host:9000/a@b.mp4"


def test_a_given_name_is_kept_and_must_belong_to_one_file(bucket):
    (one,) = expanded(find_sources([f"yard={bucket}/session=0/clip0.mp4"]))
    assert (one.name, one.address) == ("yard", f"{bucket}/session=0/clip0.mp4")
    with pytest.raises(UsageError, match="a name must belong to one source, but this address holds 2"):
        expanded(find_sources([f"yard={bucket}/session=0"]))
    with pytest.raises(UsageError, match=r"^yard: is the name of both /x/1\.mp4 and /y/2\.mp4: give each"):
        expanded(find_sources(["yard=/x/1.mp4", "yard=/y/2.mp4"]))
    assert len(expanded(find_sources(["/x/1.mp4", "/x/1.mp4"]))) == 1
