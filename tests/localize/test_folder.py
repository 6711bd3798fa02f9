"""Pictures in folders → maps in a folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip.errors import DeclipError, ImageError, MissingExtraError
from declip.files import Skipped
from declip.images.read import EXTENSIONS, read_photo
from declip.localize import folder, pipeline
from declip.localize.folder import Pair, find_pictures, localize_files
from declip.localize.localizer import Localizer
from declip.localize.tiling import TiledPhoto, WholePhoto
from declip.regions import MaskRule
from declip.results import Localization, Photo
from declip.testing import Compute, FakeEngine


class Bright(Localizer):
    """Scores = brightness of the pixels themselves: what is white is manipulated."""

    def __init__(self, compute: Compute | None = None) -> None:
        super().__init__(FakeEngine(compute=compute))

    def finish(self, content: WholePhoto | TiledPhoto, start: float) -> Localization | ImageError:
        return self.one(content.photo)

    def one(self, photo: Photo) -> Localization | ImageError:
        scores = photo.pixels.mean(axis=2, dtype=np.float32) / 255
        return Localization(
            name=photo.name,
            scores=scores,
            rule=MaskRule(threshold=0.5),
            image_score=float(scores.mean()),
            model="brightness",
            sha256="00" * 32,
            seconds=1000.0,
        )


def picture(path: Path, size: tuple[int, int] = (6, 9), white: int = 3) -> Path:
    """A black PNG or lossless WebP, its first `white` columns white."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:, :white] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def names(pairs: list[Pair]) -> list[str]:
    return [pair.name.as_posix() for pair in pairs]


def run(paths: list[Path], out: Path, **options: Any) -> list[dict[str, Any]]:
    return list(localize_files(Bright(), find_pictures(paths)[0], out, **options))


def kinds(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row.get("kind") for row in rows]


# --- which pictures -------------------------------------------------------------------------------------------------


def test_a_folder_is_read_recursively_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/deep/c.webp", "sub/a.png", "notes.txt", "sub/README", "photo.jpg.txt"):
        picture(tmp_path / name)
    pairs, skipped = find_pictures([tmp_path])
    assert names(pairs) == ["a.JPG", "b.png", "sub/a.png", "sub/deep/c.webp"]
    assert [pair.path for pair in pairs] == [tmp_path / pair.name for pair in pairs]
    assert skipped == Skipped(others=3)


def test_extensions_are_read_in_either_case(tmp_path: Path) -> None:
    for extension in EXTENSIONS:
        picture(tmp_path / f"a{extension}")
        picture(tmp_path / f"B{extension.upper()}")
    assert len(find_pictures([tmp_path])[0]) == 2 * len(EXTENSIONS)


def test_hidden_names_are_passed_over_unless_given(tmp_path: Path) -> None:
    for name in ("IMG_1.jpg", "._IMG_1.jpg", "__MACOSX/._IMG_1.jpg", ".thumbs/a.jpg"):
        picture(tmp_path / name)
    pairs, skipped = find_pictures([tmp_path])
    assert names(pairs) == ["IMG_1.jpg"] and skipped == Skipped(hidden=3)
    assert names(find_pictures([tmp_path / ".thumbs"])[0]) == ["a.jpg"]
    assert names(find_pictures([tmp_path / "._IMG_1.jpg"])[0]) == ["._IMG_1.jpg"]


def test_no_picture_at_all_is_an_error_that_says_what_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("other/notes.txt", "other/.hidden.jpg", "other/a.jpg.mask.png"):
        picture(tmp_path / name)
    with pytest.raises(
        DeclipError, match=r"there is no picture in .*empty: 0 other files; expected files that end in .av"
    ):
        find_pictures([tmp_path / "empty"])
    with pytest.raises(DeclipError, match="1 other file, 1 hidden name, 1 map of declip's; expected"):
        find_pictures([tmp_path / "empty", tmp_path / "other"])
    assert not caplog.records
    picture(tmp_path / "full" / "a.jpg")
    assert names(find_pictures([tmp_path / "empty", tmp_path / "full"])[0]) == ["full/a.jpg"]
    assert [record.getMessage() for record in caplog.records] == [
        f"there is no picture in {tmp_path / 'empty'}: 0 other files"
    ]


def test_addresses_are_paths_too(tmp_path: Path) -> None:
    photo = picture(tmp_path / "my photos" / "a#1.jpg")
    for given in (photo.as_uri(), photo.parent.as_uri(), photo.as_uri().replace("file://", "file://localhost")):
        assert find_pictures([given])[0] == [Pair(photo, Path("a#1.jpg"))]


def test_own_outputs_are_never_inputs(tmp_path: Path) -> None:
    photo = picture(tmp_path / "photo.jpg")
    run([photo], tmp_path)
    picture(tmp_path / "my.mask.png")  # no output: "my" is no picture's name
    picture(tmp_path / "photo.jpg.png")
    pairs, skipped = find_pictures([tmp_path])
    assert names(pairs) == ["my.mask.png", "photo.jpg", "photo.jpg.png"]
    assert skipped == Skipped(outputs=3)
    given = sorted(tmp_path.iterdir())  # as a shell's `*` gives them
    assert names(find_pictures(given)[0]) == names(pairs) and find_pictures(given)[1] == skipped


def test_a_file_is_taken_whatever_its_extension(tmp_path: Path) -> None:
    explicit = [picture(tmp_path / "x.dat"), picture(tmp_path / "photo")]
    assert names(find_pictures(explicit)[0]) == ["x.dat", "photo"]


def test_paths_keep_the_order_they_were_given_in(tmp_path: Path) -> None:
    picture(tmp_path / "folder" / "a.png")
    last = picture(tmp_path / "0.png")
    assert names(find_pictures([str(tmp_path / "folder"), last])[0]) == ["folder/a.png", "0.png"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a", "b"], ["a/x.jpg", "b/sub/x.jpg", "b/x.jpg"]),
        (["b", "a"], ["b/sub/x.jpg", "b/x.jpg", "a/x.jpg"]),
        (["a/x.jpg", "b/x.jpg"], ["a/x.jpg", "b/x.jpg"]),
        (["b/sub", "b/x.jpg"], ["sub/x.jpg", "x.jpg"]),
        (["b", "b/sub", "b/../b/x.jpg"], ["sub/x.jpg", "x.jpg"]),
        (["a"], ["x.jpg"]),
        (["a/x.jpg"], ["x.jpg"]),
        (["a/x.jpg", "a/x.jpg"], ["x.jpg"]),
    ],
)
def test_names_are_paths_below_what_the_arguments_have_in_common(
    given: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/x.jpg", "b/x.jpg", "b/sub/x.jpg"):
        picture(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert names(find_pictures(given)[0]) == expected
    assert names(find_pictures([tmp_path / path for path in given])[0]) == expected


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no such file or folder") as caught:
        find_pictures([tmp_path, tmp_path / "gone"])
    assert caught.value.kind == "missing"
    with pytest.raises(ImageError):
        find_pictures([tmp_path / ("long" * 100)])


def test_links_and_pipes(tmp_path: Path) -> None:
    picture(tmp_path / "real.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    pairs, skipped = find_pictures([tmp_path])
    assert names(pairs) == ["broken.png", "link.png", "real.png"]
    assert skipped == Skipped(others=1, links=1)
    assert kinds(run([tmp_path], tmp_path / "out")) == ["missing", None, None]


# --- the maps -------------------------------------------------------------------------------------------------------


def test_three_maps_of_the_photos_own_size(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "sub" / "photo.png", (6, 9), white=3)
    (row,) = run([tmp_path / "in"], tmp_path / "out")
    folder = tmp_path / "out" / "sub"
    assert sorted(path.name for path in folder.iterdir()) == [
        "photo.png.mask.png",
        "photo.png.overlay.png",
        "photo.png.scores.png",
    ]
    expected = np.zeros((6, 9), bool)
    expected[:, :3] = True
    with Image.open(folder / "photo.png.scores.png") as scores:
        values = np.asarray(scores)
    assert values.dtype == np.uint16
    assert np.array_equal(values, expected * 65535)
    with Image.open(folder / "photo.png.mask.png") as mask:
        assert mask.mode == "L"
        assert np.array_equal(np.asarray(mask), expected * 255)
    with Image.open(folder / "photo.png.overlay.png") as overlay:
        assert (overlay.mode, overlay.height, overlay.width) == ("RGB", 6, 9)
    assert row["image"] == str(tmp_path / "in" / "sub" / "photo.png")
    assert (row["width"], row["height"], row["area"], row["score"]) == (
        9,
        6,
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    )
    (region,) = row["regions"]
    assert (region["bbox"], region["area"], region["score"]) == ((0, 0, 3, 6), pytest.approx(1 / 3), 1.0)
    assert (region["rank"], region["verdict"], region["clue"]) == (None, None, "model")
    assert row["seconds"] == 1000


def test_a_bad_file_is_a_row_in_its_place(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    whole = picture(tmp_path / "c.png", (50, 50)).read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    picture(tmp_path / "d.png")
    rows = run([tmp_path], tmp_path / "out")
    assert kinds(rows) == [None, "format", "corrupt", None]
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png", "c.png", "d.png"]
    assert list(rows[1]) == ["image", "error", "kind"]
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_photos_go_through_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(7):
        picture(tmp_path / f"{i}.png", (6, 9))  # 54 px each
    localizer = Bright()
    rows = list(localize_files(localizer, find_pictures([tmp_path])[0], tmp_path / "out", batch_size=3))
    assert [Path(row["image"]).name for row in rows] == [f"{i}.png" for i in range(7)]
    assert localizer.engine.batches == [3, 3, 1]  # type: ignore[attr-defined]
    monkeypatch.setattr(pipeline, "HELD_PIXELS", 100)  # large photos do not wait for each other
    localizer = Bright()
    list(localize_files(localizer, find_pictures([tmp_path])[0], tmp_path / "large"))
    assert localizer.engine.batches == [2, 2, 2, 1]  # type: ignore[attr-defined]


def test_each_photo_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    decoded: list[Any] = []

    def counting(source: Any, **limits: Any) -> Photo:
        decoded.append(source)
        return read_photo(source, **limits)

    monkeypatch.setattr("declip.localize.localizer.read_photo", counting)
    run([tmp_path], tmp_path / "out")
    assert decoded == [tmp_path / "a.png"]


def test_nothing_to_do(tmp_path: Path) -> None:
    assert run([], tmp_path / "out") == []


# --- nothing is overwritten -----------------------------------------------------------------------------------------


def test_an_output_that_exists_is_kept_and_not_computed(tmp_path: Path) -> None:
    pairs = find_pictures([picture(tmp_path / "a.png")])[0]
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png.overlay.png").write_text("mine")
    localizer = Bright()
    (row,) = localize_files(localizer, pairs, out)
    assert row["kind"] == "exists"
    assert f"{out / 'a.png.overlay.png'} exists" in row["error"]
    assert localizer.engine.batches == []  # type: ignore[attr-defined]
    assert [path.name for path in out.iterdir()] == ["a.png.overlay.png"]
    assert (out / "a.png.overlay.png").read_text() == "mine"


def test_force_overwrites(tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png", white=3)
    assert kinds(run([photo], tmp_path / "out")) == [None]
    picture(photo, white=5)
    assert kinds(run([photo], tmp_path / "out")) == ["exists"]
    (row,) = run([photo], tmp_path / "out", force=True)
    assert row["area"] == pytest.approx(5 / 9)
    with Image.open(tmp_path / "out" / "a.png.mask.png") as mask:
        assert np.asarray(mask).mean() / 255 == pytest.approx(5 / 9)


@pytest.mark.parametrize("force", [False, True])
def test_two_pictures_given_the_same_name_do_not_overwrite_each_other(tmp_path: Path, force: bool) -> None:
    pairs = [Pair(picture(tmp_path / f"{i}.png", white=i), Path("a.png")) for i in (1, 2)]
    rows = list(localize_files(Bright(), pairs, tmp_path / "out", force=force))
    assert kinds(rows) == [None, "exists"]
    assert "another picture of this run" in rows[1]["error"]
    with Image.open(tmp_path / "out" / "a.png.mask.png") as mask:
        assert np.asarray(mask).mean() / 255 == pytest.approx(1 / 9)


def test_what_another_run_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    class Slow(Bright):
        def one(self, photo: Photo) -> Localization | ImageError:
            (out / "a.png.mask.png").write_text("theirs")
            return super().one(photo)

    (row,) = localize_files(Slow(), find_pictures([picture(tmp_path / "a.png")])[0], out)
    assert row["kind"] == "exists"
    assert [path.name for path in out.iterdir()] == ["a.png.mask.png"]


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_an_unforeseen_error_costs_one_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Fragile(Bright):
        def one(self, photo: Photo) -> Localization | ImageError:
            if photo.size == (7, 7):
                raise RuntimeError("the engine choked")
            return super().one(photo)

    for i in range(4):
        picture(tmp_path / f"{i}.png", (7, 7) if i == 2 else (6, 9))
    rows = list(localize_files(Fragile(), find_pictures([tmp_path])[0], tmp_path / "out"))
    assert kinds(rows) == [None, None, "internal", None]
    assert rows[2]["error"] == f"{tmp_path / '2.png'}: RuntimeError: the engine choked"
    assert "Traceback" in caplog.text


def test_what_concerns_every_picture_is_raised(tmp_path: Path) -> None:
    class Failing(Bright):
        def __init__(self, error: BaseException) -> None:
            super().__init__()
            self.error = error

        def one(self, photo: Photo) -> Localization | ImageError:
            raise self.error

    pairs = find_pictures([picture(tmp_path / "a.png")])[0]
    for error in (MissingExtraError("torch", "torch"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            list(localize_files(Failing(error), pairs, tmp_path / "out"))


def test_an_output_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeclipError, match="cannot make the output folder"):
        run([picture(tmp_path / "a.png")], tmp_path / "file" / "out")


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    (row,) = run([picture(tmp_path / "a.png")], tmp_path / "out")
    assert row["kind"] == "write"
    assert row["error"].endswith("No space left on device")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_name_too_long_for_its_maps(tmp_path: Path) -> None:
    long = picture(tmp_path / f"{'n' * 245}.png")
    rows = run([long, picture(tmp_path / "a.png")], tmp_path / "out")
    assert kinds(rows) == ["write", None]
    assert rows[0]["error"].endswith("File name too long")


@pytest.mark.parametrize("where", ["localizer.read_photo", "folder.overlay_png"])
def test_memory_that_ends_while_one_photo_is_read_or_written(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_photo if where == "localizer.read_photo" else folder.overlay_png

    def limited(first: Any, *more: Any, **options: Any) -> Any:
        if getattr(first, "stem", getattr(first, "name", "")).endswith(("1", "1.png")):
            raise MemoryError
        return whole(first, *more, **options)

    for i in range(3):
        picture(tmp_path / f"{i}.png")
    monkeypatch.setattr(f"declip.localize.{where}", limited)
    rows = run([tmp_path], tmp_path / "out")
    assert kinds(rows) == [None, "too-large", None]
    assert rows[1]["error"].startswith(f"{tmp_path / '1.png'}: there is not enough memory for this picture")
    assert len(list((tmp_path / "out").iterdir())) == 6


# --- several pictures in a file -------------------------------------------------------------------------------------


def pages_file(path: Path, whites: list[int]) -> Path:
    """A TIFF whose pages are black but for their first columns."""
    pages = []
    for white in whites:
        pixels = np.zeros((6, 10, 3), np.uint8)
        pixels[:, :white] = 255
        pages.append(Image.fromarray(pixels))
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


def test_every_page_has_its_own_row_and_files(tmp_path: Path) -> None:
    scan = pages_file(tmp_path / "scan.tif", [1, 2, 5])
    rows = run([scan, picture(tmp_path / "one.png")], tmp_path / "out", pages="all")
    assert [row["image"] for row in rows] == [*(f"{scan}#{page}" for page in (1, 2, 3)), str(tmp_path / "one.png")]
    assert [round(row["area"], 2) for row in rows[:3]] == [0.1, 0.2, 0.5]
    written = sorted(path.name for path in (tmp_path / "out").glob("*.mask.png"))
    assert written == ["one.png.mask.png", *(f"scan.tif#{page}.mask.png" for page in (1, 2, 3))]
    mask = np.asarray(Image.open(tmp_path / "out" / "scan.tif#3.mask.png")) > 0
    assert mask[:, :5].all() and not mask[:, 5:].any()
    with pytest.raises(DeclipError, match="there is no picture in"):  # the files of pages are no inputs either
        find_pictures([tmp_path / "out"])


def test_pages_fail_by_themselves(tmp_path: Path) -> None:
    scan, out = pages_file(tmp_path / "scan.tif", [1, 2]), tmp_path / "out"
    (row,) = run([scan], out)  # the first page is the default
    assert row["image"] == str(scan) and row["area"] == pytest.approx(0.1) and (out / "scan.tif.mask.png").exists()
    run([scan], out, pages="all")
    for kind in ("mask", "scores", "overlay"):
        (out / f"scan.tif#1.{kind}.png").unlink()
    (tmp_path / "bad.tif").write_bytes(b"II*\0nothing")
    rows = run([scan, tmp_path / "bad.tif"], out, pages="all")
    assert kinds(rows) == [None, "exists", "corrupt"] and "scan.tif#2" in rows[1]["error"]


def test_other_words_for_pages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeclipError, match="pages is '3'; expected one of 'first', 'all'"):
        run([picture(tmp_path / "one.png")], tmp_path / "out", pages="3")
