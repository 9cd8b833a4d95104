import logging
import multiprocessing
import threading

import pytest

from workbench.engine.files.record import (
    KVCacheRecord,
    LayerRecord,
    PruneNode,
    PruneRecord,
    Record,
    read_record,
    write_record,
)
from workbench.engine.files.record_merge import RecordMerger


def add_many(path, prefix, count):
    merger = RecordMerger(path)
    for i in range(count):
        merger.add({f"{prefix}{i}": KVCacheRecord((float(i + 1),), (i,))})


def test_entries_of_several_writers_are_all_there(tmp_path):
    path = tmp_path / "record.txt"
    threads = [threading.Thread(target=add_many, args=(path, f"t{n}.", 5)) for n in range(3)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_many, args=(path, f"p{n}.", 5)) for n in range(2)]
    for worker in (*processes, *threads):
        worker.start()
    for worker in (*processes, *threads):
        worker.join()
    expected = {f"{who}.{i}" for who in ("t0", "t1", "t2", "p0", "p1") for i in range(5)}
    assert set(read_record(path).kv_cache) == expected
    assert list(tmp_path.iterdir()) == [path]


def test_what_else_the_record_holds_stays(tmp_path, caplog):
    path = tmp_path / "record.txt"
    write_record(
        path,
        Record(
            {"conv": LayerRecord(scale_d=0.5, offset_d=3, scale_w=(0.25,), offset_w=(0,))},
            {"k": KVCacheRecord((1.0,), (0,))},
            (PruneRecord((PruneNode("a"),), (PruneNode("b"),)),),
        ),
    )
    merger = RecordMerger(path)
    merger.add({"v": KVCacheRecord((2.0, 3.0), (1, 2))})
    before = read_record(path)
    with caplog.at_level(logging.WARNING):
        merger.add({"k": KVCacheRecord((9.0,), (7,)), "conv": KVCacheRecord((1.0,), (0,))})
    assert [r.message for r in caplog.records] == [f"{path}: kv_cache_value of k is overwritten"]
    after = read_record(path)
    assert after.prune == before.prune and after.layers == before.layers
    assert after.kv_cache["k"] == KVCacheRecord((9.0,), (7,))
    assert after.kv_cache["v"] == before.kv_cache["v"] == KVCacheRecord((2.0, 3.0), (1, 2))
    assert after.names() == ("conv", "k", "v")


def test_a_file_that_is_no_record_is_left_alone(tmp_path):
    path = tmp_path / "record.txt"
    path.write_text("my notes")
    with pytest.raises(RuntimeError, match="record.txt"):
        RecordMerger(path).add({"k": KVCacheRecord((1.0,), (0,))})
    assert path.read_text() == "my notes"


def test_reset_empties(tmp_path):
    path = tmp_path / "folder" / "record.txt"
    merger = RecordMerger(path)
    merger.add({"k": KVCacheRecord((1.0,), (0,))})
    merger.reset()
    assert path.read_text() == ""
    merger.add({"v": KVCacheRecord((1.0,), (0,))})
    assert set(read_record(path).kv_cache) == {"v"}
