"""The built-in picture decoder on pictures whose answer is known: coloured shapes."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diffusion.decoders import SpaceMismatch, load_decoder
from diffusion.decoders.builtin_image import BuiltinImageDecoder, ImageDecoderConfig, train_image_decoder
from diffusion.decoders.shapes import SIDE, between, cut

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 90, 220)}


def drawn(colour: str, kind: str, size: int = 128) -> Image.Image:
    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    box = (size * 0.2, size * 0.2, size * 0.8, size * 0.8)
    (draw.ellipse if kind == "disc" else draw.rectangle)(box, fill=COLOURS[colour])
    draw.ellipse((size * 0.4, size * 0.4, size * 0.5, size * 0.5), fill="black")
    return picture


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A decoder of six pictures whose embeddings say colour and kind, and the embeddings."""
    folder = tmp_path_factory.mktemp("pictures")
    paths, embeddings = [], []
    for c, colour in enumerate(COLOURS):
        for k, kind in enumerate(("disc", "box")):
            path = folder / f"{colour}-{kind}.png"
            drawn(colour, kind).save(path)
            paths.append(path)
            embeddings.append([*np.eye(3)[c] * 2, *np.eye(2)[k], 5.0])
    embeddings = np.array(embeddings, np.float32)
    return train_image_decoder(paths, embeddings, ImageDecoderConfig(space="toy", directions=5)), embeddings


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), np.float32)


def ink(picture: Image.Image) -> np.ndarray:
    """Mean colour of what is not background."""
    values = pixels(picture)
    return values[(values < 240).any(axis=2)].mean(axis=0)


def test_cut_finds_background_colours_and_keeps_white_inside():
    picture = drawn("red", "disc")
    ImageDraw.Draw(picture).ellipse((50, 70, 70, 90), fill="white")
    shapes = cut(picture)
    assert shapes.labels.shape == (SIDE, SIDE)
    assert shapes.labels[0, 0] == 0
    assert shapes.labels[int(SIDE * 0.62), int(SIDE * 0.47)] == 1  # white, but not background
    found = shapes.palette[shapes.labels[SIDE // 2, int(SIDE * 0.7)]] * 255
    assert np.abs(found - COLOURS["red"]).max() < 12


def test_a_picture_between_itself_and_itself_is_itself():
    picture = drawn("blue", "box", 256)
    shapes = cut(picture)
    again = between(shapes, shapes, 0.3, 0.3)
    assert np.abs(pixels(again) - pixels(picture)).mean() < 6


def test_between_disc_and_box_lies_between_in_outline_and_colour():
    disc, box = cut(drawn("red", "disc")), cut(drawn("blue", "box"))
    covered = [(pixels(between(disc, box, t, t)) < 240).any(axis=2).mean() for t in (0.0, 0.5, 1.0)]
    assert covered[0] < covered[1] < covered[2]
    reds = [ink(between(disc, box, 0.5, t))[0] for t in (0.0, 0.5, 1.0)]
    assert reds[0] > reds[1] > reds[2]


@pytest.mark.parametrize("picture", [Image.new("RGB", (40, 90), "white"), Image.new("L", (9, 7), 0)])
def test_empty_and_tiny_pictures_are_cut_and_drawn(picture):
    shapes = cut(picture)
    assert between(shapes, shapes, 0.2, 0.2).size == (256, 256)


def test_a_photograph_without_flat_places_is_cut():
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    assert cut(Image.fromarray(noise)).labels.max() > 0


def test_the_embedding_decides_the_colour(taught):
    decoder, embeddings = taught
    for row, channel in ((0, 0), (2, 1), (4, 2)):
        colours = np.mean(
            [ink(picture) for seed in range(6) for picture in decoder.decode(embeddings[[row]], seed=seed)], 0
        )
        assert colours.argmax() == channel


def test_same_seed_same_picture_other_seed_other_picture(taught):
    decoder, embeddings = taught
    once, again = decoder.decode(embeddings, seed=3), decoder.decode(embeddings, seed=3)
    assert all((pixels(a) == pixels(b)).all() for a, b in zip(once, again, strict=True))
    others = decoder.decode(embeddings, seed=4)
    assert any((pixels(a) != pixels(b)).any() for a, b in zip(once, others, strict=True))


def test_a_batch_may_be_cut_anywhere(taught):
    decoder, embeddings = taught
    whole = decoder.decode(embeddings, seed=1)
    parts = decoder.decode(embeddings[:2], seed=1) + decoder.decode(embeddings[2:], seed=1, first=2)
    assert all((pixels(a) == pixels(b)).all() for a, b in zip(whole, parts, strict=True))


def test_nothing_drawn_is_a_remembered_picture(taught):
    decoder, embeddings = taught
    for seed in range(8):
        for row, picture in enumerate(decoder.decode(embeddings, seed=seed)):
            remembered = between(decoder._shapes(row), decoder._shapes(row), 0, 0)
            assert np.abs(pixels(picture) - pixels(remembered)).mean() > 0.5


def test_only_what_the_references_name_is_drawn_from(taught):
    decoder, embeddings = taught
    greens = np.repeat(embeddings[None, 2:4], 8, axis=0)  # [8, 2, d]
    toward_red = np.repeat(embeddings[:1], 8, axis=0)
    for picture in decoder.decode(toward_red, references=greens):
        assert ink(picture)[1] > ink(picture)[0] + 40, "green, whatever the embedding says"
    free = [ink(picture) for picture in decoder.decode(toward_red)]
    assert any(colour[0] > colour[1] + 40 for colour in free), "without them red comes too"
    alone = decoder.decode(embeddings[:2], seed=1, references=embeddings[[2, 3]][:, None])
    free = decoder.decode(embeddings[:2], seed=1)
    assert [np.array_equal(a, b) for a, b in zip(alone, free, strict=True)] == [True, True], "one is nothing to blend"
    with pytest.raises(ValueError, match="references"):
        decoder.decode(embeddings[:2], references=greens)


def test_saved_and_loaded_it_draws_the_same(taught, tmp_path):
    decoder, embeddings = taught
    decoder.save_pretrained(tmp_path)
    loaded = load_decoder(tmp_path, "toy")
    assert isinstance(loaded, BuiltinImageDecoder)
    pairs = zip(decoder.decode(embeddings), loaded.decode(embeddings), strict=True)
    assert all((pixels(a) == pixels(b)).all() for a, b in pairs)
    with pytest.raises(SpaceMismatch, match="toy"):
        load_decoder(tmp_path, "efficientnet_lite0")


def test_what_does_not_fit_is_refused(taught, tmp_path):
    decoder, embeddings = taught
    with pytest.raises(ValueError, match=r"\[n, 6\]"):
        decoder.decode(embeddings[:, :4])
    with pytest.raises(ValueError, match="NaN"):
        decoder.decode(np.full((1, 6), np.nan, np.float32))
    with pytest.raises(ValueError, match="one row a picture"):
        train_image_decoder([], np.zeros((0, 6), np.float32))
    with pytest.raises(FileNotFoundError, match="mmrec train decoder"):
        load_decoder("builtin_image", "efficientnet_lite0")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        BuiltinImageDecoder.from_pretrained(tmp_path / "absent")
