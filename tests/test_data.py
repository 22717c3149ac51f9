import re

import numpy as np
import pytest

from slotmatch import data

REAL = [name for name in data.NAMES if not name.startswith("minimovi")]


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """Nothing here renders: a test that does leaves files behind, which is an error."""
    monkeypatch.setenv("SLOTMATCH_DATA", str(tmp_path))
    yield
    assert not list(tmp_path.iterdir())


def test_names_cover_the_embedded_and_the_papers_data():
    assert {f"minimovi_{x}" for x in "acde"} <= set(data.NAMES)
    assert {"movi_c", "movi_d", "movi_e", "ytvis2021", "davis2017", "ovis"} <= set(REAL)
    assert data.SPLITS == ("train", "validation", "test")


@pytest.mark.parametrize("name", REAL)
def test_a_data_set_without_files_says_where_they_are_and_what_to_run_instead(name):
    with pytest.raises(FileNotFoundError) as error:
        data.open(name, "validation")
    message = str(error.value)
    assert message.startswith(f"the files of {name} are not on this machine")
    assert re.search(r"source: \S+", message)
    stand_in = re.search(r"-p dataset (\S+)$", message)
    assert stand_in is not None
    assert stand_in[1] in set(data.NAMES) - set(REAL)
    assert "\n" not in message
    assert ". " not in message  # one sentence


@pytest.mark.parametrize("name", ["minimovi_b", "movi", "", "MiniMovi_A"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=re.escape(repr(name))) as error:
        data.open(name, "test")
    assert all(known in str(error.value) for known in data.NAMES)


@pytest.mark.parametrize("name", ["minimovi_a", "movi_e"])
def test_an_unknown_split_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="no split is called 'val'; choose from train, validation"):
        data.open(name, "val")


@pytest.mark.parametrize("n_videos", [0, -1, 2.0, "3", True, np.float64(4)])
def test_a_number_of_videos_is_a_whole_number_of_1_or_more(n_videos):
    with pytest.raises(ValueError, match="give a whole number of 1 or more") as error:
        data.open("minimovi_a", "test", n_videos=n_videos)
    assert repr(n_videos) in str(error.value)


def test_a_result_says_which_version_of_the_data_it_used() -> None:
    from slotmatch.data import minimovi, movi

    assert data.version("minimovi_e") == minimovi.VERSION
    assert data.version("movi_e") == movi.VERSION == "1.0.0"
    assert data.version("ytvis2021") is None
