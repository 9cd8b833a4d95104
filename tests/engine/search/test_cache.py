"""What a project's trials look like on disk, and what survives a torn write."""

import json

from hypothesis import given
from hypothesis import strategies as st

from workbench.engine.search.cache import CACHE_FILE, TrialCache
from workbench.engine.search.identity import digest_of


def test_entries_and_scores_are_there_again(tmp_path):
    cache = TrialCache(tmp_path / "project")
    cache.put("trial", "a", {"metric": 0.1 + 0.2, "seconds": 1.5})
    cache.put("trial", "a", {"metric": 0.25, "seconds": 2.0})
    cache.add_scores("b", {3: 1.0, 1: 1 / 3})
    cache.add_scores("b", {2: 0.0})
    again = TrialCache(tmp_path / "project")
    assert again.get("trial", "a") == {"metric": 0.25, "seconds": 2.0}
    assert again.get("ranking", "a") is None
    assert again.scores("b") == {3: 1.0, 1: 1 / 3, 2: 0.0}
    lines = (tmp_path / "project" / CACHE_FILE).read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines) and len(lines) == 4


@given(cut=st.integers(1, 60))
def test_a_torn_last_line_is_ignored_and_the_next_one_is_whole(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("torn")
    cache = TrialCache(folder)
    cache.put("trial", "first", {"loss": 1.0})
    cache.put("trial", "second", {"loss": 2.0})
    path = folder / CACHE_FILE
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: max(first, len(whole) - cut)])
    again = TrialCache(folder)
    assert again.get("trial", "first") == {"loss": 1.0}
    # Without its newline the line is whole; a byte less and it is not JSON.
    assert (again.get("trial", "second") is None) == (cut > 1)
    again.put("trial", "third", {"loss": 3.0})
    assert TrialCache(folder).get("trial", "third") == {"loss": 3.0}


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = TrialCache()
    cache.put("trial", "a", {"loss": 1.0})
    assert cache.get("trial", "a") == {"loss": 1.0} and not list(tmp_path.iterdir())


def test_a_function_is_known_by_what_it_does():
    def compiled(body: str, before: str = "") -> object:
        space: dict[str, object] = {"__name__": "user"}
        exec(f"{before}def metric(model, batches):\n    return {body}\n", space)
        return space["metric"]

    first = digest_of(compiled("model in {'a', 'b'}"))
    assert digest_of(compiled("model in {'a', 'b'}", before="\n\n")) == first
    assert digest_of(compiled("model in {'a', 'c'}")) != first
    assert digest_of(compiled("sum(x * 2 for x in batches)")) != digest_of(
        compiled("sum(x * 3 for x in batches)")
    )
