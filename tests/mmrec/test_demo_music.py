import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from diffusion.decoders.score import LEADS, decode_score, encode_score
from mmrec.datasets.demo_music import _plan, demo_music
from mmrec.datasets.music_pairs import is_held_out, random_score
from mmrec.datasets.tunes import RANGES, STYLES, TUNE_FAMILIES, arrange, harmonise, read_work, works

LIMIT = 11  # one clip of each family


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("music")
    return folder, demo_music(folder, LIMIT, processes=1)


def test_rows_say_what_is_played(catalog: tuple[Path, list[dict]]) -> None:
    _, rows = catalog
    assert [row["metadata"]["family"] for row in rows] == list(STYLES)
    assert len({row["item_id"] for row in rows}) == LIMIT
    for row in rows:
        assert row["text"].startswith(row["title"])
        assert row["metadata"]["instrument"] in row["text"]
        assert row["metadata"]["key"] in row["text"]
        assert not Path(row["audio"]).is_absolute()


def test_clips_sound(catalog: tuple[Path, list[dict]]) -> None:
    folder, rows = catalog
    for row in rows:
        samples, rate = soundfile.read(folder / row["audio"])
        assert samples.ndim == 1
        assert 6 <= len(samples) / rate <= 15, row["item_id"]
        assert 0.3 < np.abs(samples).max() < 1, row["item_id"]
        assert np.sqrt(np.mean(samples**2)) > 0.01, row["item_id"]
        assert (folder / row["audio"]).stat().st_size < 200_000


def test_what_is_there_is_kept_and_what_is_broken_is_made_again(catalog: tuple[Path, list[dict]]) -> None:
    folder, rows = catalog
    files = [folder / row["audio"] for row in rows[:3]]
    whole, sizes = soundfile.read(files[0])[0], [file.stat().st_size for file in files]
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].unlink()
    times = {file: file.stat().st_mtime_ns for file in folder.glob("audio/*.ogg") if file not in files[:2]}
    seen: list[tuple[int, int]] = []
    assert demo_music(folder, LIMIT, progress=lambda done, total: seen.append((done, total)), processes=2) == rows
    assert seen == [(done, LIMIT) for done in range(1, LIMIT + 1)]
    np.testing.assert_array_equal(soundfile.read(files[0])[0], whole)
    assert abs(files[1].stat().st_size - sizes[1]) < 64
    assert times == {file: file.stat().st_mtime_ns for file in times}
    assert not list(folder.glob("audio/*.part"))


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        demo_music(tmp_path, 0)
    with pytest.raises(ValueError, match="4 to 20 seconds"):
        demo_music(tmp_path, 3, seconds=60)


def test_plan_shares_the_catalog_fairly_and_no_work_twice() -> None:
    plan = _plan(240)
    assert len(plan) == 240
    families = [candidates[0].family for _, candidates in plan]
    assert {families.count(family) for family in STYLES} <= {21, 22}
    tried = [work.id for _, candidates in plan for work in candidates]
    assert len(tried) == len(set(tried))
    assert all(lead in STYLES[candidates[0].family][0] for lead, candidates in plan)


def test_encodings_that_reserve_rights_stay_out() -> None:
    everything = [work for members in works().values() for work in members]
    assert len(everything) > 2500
    assert len({work.id for work in everything}) == len(everything)
    assert not [work for work in everything if work.path.parent.name in ("palestrina", "josquin", "essenFolksong")]
    medieval = works()["medieval"]
    assert not [work for work in medieval if b"Copyright" in work.path.read_bytes()]


def test_styles_name_real_instruments() -> None:
    for family, (leads, _, _) in STYLES.items():
        assert set(leads) <= LEADS.keys()
        assert family not in TUNE_FAMILIES or set(leads) <= RANGES.keys()


def test_a_known_tune_is_read_right() -> None:
    work = next(work for work in works()["reel"] if work.id == "ryan-7th-regiment-reel")
    piece = read_work(work)
    assert piece is not None
    assert (piece.metre, piece.tonic, piece.mode, piece.bars) == ("4/4", 9, "major", 16)
    assert [note[1] for note in piece.voices[0][:6]] == [69, 69, 73, 76, 69, 73]  # A2 Ac eAc
    assert [note[2] for note in piece.voices[0][:6]] == [12, 6, 6, 6, 6, 6]
    score = arrange(piece, "reel", random.Random(0), lead="fiddle")
    assert score is not None
    assert (score.bars, score.lead, score.tonic) == (8, "fiddle", 9)
    assert decode_score(encode_score(score)) == score


def test_a_melody_is_harmonised_with_the_chords_it_spells() -> None:
    c, f, g = ((60, 12), (64, 12)), ((65, 12), (69, 12)), ((67, 12), (71, 12))
    line = (*c, *f, *g, *c)
    assert harmonise(line, "4/4", 0, "major", 2) == ((0, 4), (5, 4), (7, 4), (0, 4))


def test_held_out_works_never_come_into_training() -> None:
    drawn = [random_score(family, random.Random(seed)) for family in ("jig", "chorale") for seed in range(5)]
    names = [found[0].id for found in drawn if found]
    assert len(names) >= 5
    assert not any(map(is_held_out, names))
    share = np.mean([is_held_out(work.id) for members in works().values() for work in members])
    assert 0.09 < share < 0.16
