"""Every page of the app, run by Streamlit's own test client over a small real workspace."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from mmrec.feedback import Feedback
from mmrec.recommender import Recommender

APP = Path(__file__).parents[2] / "apps" / "app.py"
GUEST = "guest-calm-otter-0a1b2c"


@pytest.fixture
def workspace(tiny_workspace: Path, tmp_path: Path) -> Path:
    """The small workspace with a feedback file of its own."""
    root = tmp_path / "workspace"
    linked(tiny_workspace, root, without=())
    return root


def linked(source: Path, root: Path, without: tuple[str, ...]) -> None:
    root.mkdir()
    for entry in source.iterdir():
        if entry.name not in without and not entry.name.startswith(("feedback", ".lock")):
            (root / entry.name).symlink_to(entry.resolve())


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch):
    """Open the app in a session of its own."""

    def opened(root: Path, page: str = "", person: str = GUEST) -> AppTest:
        monkeypatch.setattr("sys.argv", ["app.py", "--workspace", str(root)])
        app = AppTest.from_file(APP, default_timeout=120)
        app.query_params["person"] = person
        app.run()
        return went(app, page) if page else app

    return opened


def went(app: AppTest, page: str) -> AppTest:
    return app.switch_page(f"views/{page}.py").run()


def texts(app: AppTest) -> str:
    assert not app.exception, app.exception
    shown = [
        element.value for kind in ("html", "markdown", "caption", "code", "info", "error") for element in app.get(kind)
    ]
    return re.sub(r"data:image/[^\"]+", "", "\n".join(shown))


def offered(app: AppTest, origin: str) -> list[str]:
    """The item ids of the cards shown under `origin`, in order."""
    assert not app.exception, app.exception
    keys = (button.key or "" for button in app.button)
    return [key.removeprefix(f"like-{origin}-") for key in keys if key.startswith(f"like-{origin}-")]


def like_three(app: AppTest) -> list[str]:
    liked = offered(app, "start")[:3]
    for item in liked:
        app.button(key=f"like-start-{item}").click().run()
    return liked


def test_a_new_person_likes_three_things_and_is_recommended_to(workspace, visit):
    app = visit(workspace)
    assert "What do you like?" in texts(app)
    before = offered(app, "start")
    app.button(key="more").click().run()
    assert len(offered(app, "start")) > len(before)

    liked = like_three(app)
    shown = offered(app, "recommend")
    assert len(shown) == 10
    assert not set(shown) & set(liked), "what was liked is met and must not come back"
    reasons = texts(app).count("because you liked") + texts(app).count("people with a taste like yours")
    assert reasons >= len(shown), "every card says why it is there"

    app.button(key=f"dislike-recommend-{shown[0]}").click().run()
    after = offered(app, "recommend")
    assert shown[0] not in after
    assert after != shown[1:], "a dislike changes what comes next, it does not only hide"
    assert Feedback(workspace / "feedback.sqlite").of(GUEST) == {**dict.fromkeys(liked, 1.0), shown[0]: -1.0}


def test_feedback_survives_the_session_and_can_be_taken_back(workspace, visit):
    liked = like_three(visit(workspace))
    again = visit(workspace)
    assert offered(again, "recommend")
    assert "3 liked" in texts(again)
    again.button(key=f"remove-{liked[0]}").click().run()
    assert set(Feedback(workspace / "feedback.sqlite").of(GUEST)) == set(liked[1:])
    assert "What do you like?" in texts(again), "two likes are too few to go by"


def test_two_sessions_do_not_mix(workspace, visit):
    like_three(visit(workspace))
    other = visit(workspace, person="guest-keen-gull-ffffff")
    assert "What do you like?" in texts(other)
    assert "3 liked" not in texts(other)


def test_a_person_of_the_log_is_labelled_and_has_a_history(workspace, visit):
    user = Recommender.load(workspace).histories.user_ids[0]
    app = visit(workspace, person=user)
    assert offered(app, "recommend")
    assert "From the log" in texts(app)
    assert any(f"{user} · simulated" in option for option in app.selectbox(key="who").options)
    assert "A simulated person" in texts(app)
    assert "people of this log are simulated" in texts(app)


def test_the_dials_change_the_list(workspace, visit):
    user = Recommender.load(workspace).histories.user_ids[0]
    app = visit(workspace, person=user)
    plain = offered(app, "recommend")
    app.text_input(key="dial-mood").set_value("fruit").run()
    assert "fits “fruit”" in texts(app)
    assert offered(app, "recommend") != plain
    app.text_input(key="dial-mood").set_value("").run()
    app.slider(key="dial-exploration").set_value(2.0).run()
    bold = offered(app, "recommend")
    assert bold != plain
    app.button(key="shuffle").click().run()
    assert offered(app, "recommend") not in (plain, bold)
    app.slider(key="dial-exploration").set_value(0.0).run()
    for mode in ("codes", "dense"):
        app.get("button_group")[0].set_value(mode).run()
        assert len(offered(app, "recommend")) == len(plain)


def dreams(app: AppTest) -> list[str]:
    """The pictures of the created dreams, as data addresses."""
    assert not app.exception, app.exception
    return [found for html in app.get("html") for found in re.findall(r'src="([^"]+)" alt="dream \d+"', html.value)]


def test_dreams_are_created_and_a_thumb_counts_for_the_nearest_real_item(workspace, visit):
    app = visit(workspace)
    like_three(app)
    went(app, "dream")
    app.slider(key="dial-n").set_value(2).run()
    first = dreams(app)
    assert len(first) == 2
    assert "Novelty" in texts(app)
    assert "Nearest real items" in texts(app)
    assert len(app.get("download_button")) == 2
    assert len(offered(app, "grounding")) == 10

    app.run()
    assert dreams(app) == first, "the same wish gives the same dreams"
    app.button(key="again").click().run()
    second = dreams(app)
    assert second != first

    before = app.session_state["dreamt"][1].dreams[0]
    nearest = before.items[0].item_id
    app.button(key="like-dream-0").click().run()
    assert Feedback(workspace / "feedback.sqlite").of(GUEST)[nearest] == 1.0
    after = app.session_state["dreamt"][1].dreams[0]
    assert float(after.vector @ before.vector) < 0.9999, "the next dreams follow what was liked"
    assert nearest not in [item.item_id for item in after.items]
    assert "Dreams you liked" in texts(app)


def test_a_liked_thing_is_changed_as_far_as_it_may(workspace, visit):
    app = visit(workspace)
    liked = like_three(app)
    went(app, "dream")
    app.slider(key="dial-n").set_value(1).run()
    assert app.slider(key="dial-strength").disabled
    app.selectbox(key="dial-edit").set_value(liked[0]).run()
    vector = Recommender.load(workspace).vectors[Recommender.load(workspace).catalog.index[liked[0]]]
    kept = []
    for strength in (0.0, 0.3, 1.0):
        app.slider(key="dial-strength").set_value(strength).run()
        assert len(dreams(app)) == 1
        kept.append(float(app.session_state["dreamt"][1].dreams[0].vector @ vector))
    assert kept[0] > 0.99
    assert kept[0] > kept[1] > kept[2]
    app.selectbox(key="dial-edit").set_value("").run()
    assert app.slider(key="dial-strength").disabled


def test_a_taste_is_told_in_pictures_and_dials_act_where_they_are_told_to(workspace, visit):
    recommender = Recommender.load(workspace)
    app = visit(workspace, "dream")
    assert app.slider(key="dial-interval").value == (0.0, 1.0)
    anybody = dreams(app)
    picture = next(path for row in range(len(recommender.catalog)) if (path := recommender.catalog.image_path(row)))
    app.file_uploader(key="own").upload("mine.png", picture.read_bytes(), "image/png").run()
    mine = dreams(app)
    assert mine != anybody
    app.slider(key="dial-likes").set_value(3.0).run()
    strong = dreams(app)
    app.slider(key="dial-interval").set_range(0.0, 0.3).run()
    assert dreams(app) not in (mine, strong)


def test_music_is_dreamt_too(workspace, visit):
    app = visit(workspace, "dream")
    app.slider(key="dial-n").set_value(1).run()
    app.get("button_group")[0].set_value("audio").run()
    texts(app)
    assert len(dreams(app)) == 1
    assert app.get("audio")
    assert app.session_state["created"][1][0].clip.seconds > 1


def test_search_by_words_and_by_picture(workspace, visit, tmp_path):
    recommender = Recommender.load(workspace)
    app = visit(workspace, "search")
    app.text_input(key="dial-words").set_value("fruit").run()
    assert offered(app, "search") == [item.item_id for item in recommender.search("fruit", k=15)]

    row = next(i for i in range(len(recommender.catalog)) if recommender.catalog.images[i])
    app.get("button_group")[0].set_value("image").run()
    picture = recommender.catalog.image_path(row)
    app.get("file_uploader")[0].upload("mine.png", picture.read_bytes(), "image/png").run()
    assert recommender.catalog.item_ids[row] in offered(app, "search")[:3]


@pytest.mark.parametrize("damage", ["empty", "text", "huge header"])
def test_an_upload_that_is_no_picture_is_refused_kindly(workspace, visit, tmp_path, damage):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    huge = whole[:16] + (50_000).to_bytes(4, "big") * 2 + whole[24:]
    data = {"empty": b"", "text": b"no picture", "huge header": huge}[damage]
    app = visit(workspace, "search")
    app.get("button_group")[0].set_value("image").run()
    app.get("file_uploader")[0].upload("bad.png", data, "image/png").run()
    assert len(app.error) == 1
    assert not app.exception
    assert not offered(app, "search")


def test_an_upload_over_the_limit_is_refused_kindly(workspace, visit, monkeypatch):
    monkeypatch.setattr("apps.session.UPLOAD_MB", 0)
    app = visit(workspace, "search")
    app.get("button_group")[0].set_value("image").run()
    app.get("file_uploader")[0].upload("big.png", b"0" * 64, "image/png").run()
    assert "big.png" in app.error[0].value


def traces(app: AppTest) -> list[dict]:
    assert not app.exception, app.exception
    return json.loads(app.get("plotly_chart")[0].proto.spec)["data"]


def test_the_map_shows_every_item_and_the_persons_taste(workspace, visit):
    recommender = Recommender.load(workspace)
    app = visit(workspace)
    liked = like_three(app)
    recommended = offered(app, "recommend")
    went(app, "map")
    for how in (None, "semantic ID"):
        if how is not None:
            app.get("button_group")[0].set_value(how).run()
        drawn = traces(app)
        marks = {trace["name"]: trace["customdata"] for trace in drawn if trace["name"] in ("Liked", "Recommended")}
        assert sorted(marks["Liked"]) == sorted(liked)
        assert sorted(marks["Recommended"]) == sorted(recommended)
        dots = [item for trace in drawn if trace["name"] not in marks for item in trace["customdata"]]
        assert sorted(dots) == sorted(recommender.catalog.item_ids)


def test_evaluation_shows_ids_and_says_when_nothing_is_measured(tiny_workspace, tmp_path, visit):
    linked(tiny_workspace, tmp_path / "w", without=("evaluation",))
    app = visit(tmp_path / "w", "evaluation")
    assert "Nothing is measured yet" in texts(app)
    assert "mmrec evaluate -w" in texts(app)
    assert len(app.get("plotly_chart")) == 2
    assert app.metric[1].value == "0%"


def test_evaluation_shows_what_was_measured(workspace, visit):
    app = visit(workspace, "evaluation")
    frame = app.dataframe[0].value
    assert {"retriever", "popularity"} <= set(frame.index)
    assert len(app.get("plotly_chart")) == 6
    assert "people asked" in texts(app)
    assert "people of this log are simulated" in texts(app)


def test_without_models_the_pages_say_which_command_brings_them(tiny_workspace, tmp_path, visit):
    linked(tiny_workspace, tmp_path / "w", without=("retriever", "prior", "evaluation"))
    assert "mmrec train retriever -w" in texts(visit(tmp_path / "w"))
    assert "mmrec train prior -w" in texts(visit(tmp_path / "w", "dream"))
    assert offered(visit(tmp_path / "w", "search"), "search")
    assert traces(visit(tmp_path / "w", "map"))


def test_without_a_log_search_and_map_work_and_the_rest_says_why(tiny_workspace, tmp_path, visit):
    from mmrec import stages
    from mmrec.config import Recipe
    from mmrec.workspace import Workspace

    gone = ("interactions", "vectors", "ids", "index", "retriever", "prior", "evaluation", ".versions", ".partial")
    linked(tiny_workspace, tmp_path / "w", without=gone)
    space, recipe = Workspace(tmp_path / "w"), Recipe.load(tmp_path / "w" / "recipe.yaml")
    for stage in (stages.fuse, stages.tokenize, stages.index):
        stage(space, recipe)
    assert "has none" in texts(visit(tmp_path / "w"))
    assert "mmrec ingest SOURCE --log LOG -w" in texts(visit(tmp_path / "w", "dream"))
    assert offered(visit(tmp_path / "w", "search"), "search")
    assert traces(visit(tmp_path / "w", "map"))


def test_a_folder_that_is_no_workspace_is_said_so(tmp_path, visit):
    app = visit(tmp_path)
    assert "is no workspace" in texts(app)
    assert "mmrec ingest" in texts(app)
