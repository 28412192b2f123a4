import re

import numpy as np
import pytest
from PIL import Image

from mmrec.datasets.demo_pictures import CREDIT, demo_picture_rows, demo_pictures


def test_catalog_is_about_things_and_ids_are_stable():
    rows = demo_picture_rows()
    assert 1000 <= len(rows) <= 1200
    ids = [row["item_id"] for row in rows]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"pic-[a-z0-9]+(-[a-z0-9]+)*", item_id) for item_id in ids)
    for wanted in ("pic-red-apple", "pic-cat", "pic-violin", "pic-rocket", "pic-astronaut", "pic-umbrella"):
        assert wanted in ids, wanted
    groups = {row["metadata"]["group"] for row in rows}
    assert groups == {
        "faces", "people", "animals", "nature", "food", "places", "transport", "activities", "clothing", "objects"
    }  # fmt: skip


def test_no_variants_flags_or_signs():
    for row in demo_picture_rows():
        codes = row["metadata"]["codepoints"].split("-")
        assert not {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff", "2640", "2642", "20e3"} & set(codes), row["item_id"]
        assert not codes[0].startswith("1f1"), row["item_id"]  # regional indicators: flags
        assert not re.search(r"arrow (at|above)|clock face|keycap", row["title"].lower())


def test_text_carries_group_and_keywords():
    by_id = {row["item_id"]: row for row in demo_picture_rows()}
    assert by_id["pic-red-apple"]["text"].startswith("Red apple: ")
    assert "fruit" in by_id["pic-red-apple"]["text"]
    assert "animal" in by_id["pic-cat"]["text"]
    assert by_id["pic-cat"]["metadata"]["emoji"] == "\N{CAT}"


def test_pictures_are_drawn_on_white_with_credit(tmp_path):
    calls = []
    rows = demo_pictures(tmp_path, size=64, limit=30, progress=lambda done, total: calls.append((done, total)))
    assert len(rows) == 30
    assert calls[-1] == (30, 30)
    assert len({row["metadata"]["group"] for row in rows}) >= 8  # spread over the groups
    for row in rows:
        assert row["metadata"]["credit"] == CREDIT
        with Image.open(tmp_path / row["image"]) as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (64, 64, 3)
        assert (pixels[0] == 255).all()  # the margin
        assert (pixels[-1] == 255).all()
        assert pixels.std() > 5  # and something on it
    assert not list(tmp_path.glob("*.tmp"))


def test_same_pictures_every_time_and_colours_are_right(tmp_path):
    rows = {row["item_id"]: row for row in demo_pictures(tmp_path / "a", size=48)}
    picture = np.asarray(Image.open(tmp_path / "a" / rows["pic-red-apple"]["image"])).reshape(-1, 3).mean(0)
    green = np.asarray(Image.open(tmp_path / "a" / rows["pic-green-apple"]["image"])).reshape(-1, 3).mean(0)
    assert picture[0] > picture[1] + 20
    assert green[1] > green[0]
    demo_pictures(tmp_path / "b", size=48, limit=5)
    for file in (tmp_path / "b").iterdir():
        assert file.read_bytes() == (tmp_path / "a" / file.name).read_bytes()


@pytest.mark.parametrize("options", [{"size": 0}, {"limit": 0}])
def test_senseless_sizes_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="at least 1"):
        demo_pictures(tmp_path, **options)
