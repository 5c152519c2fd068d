"""Caption accuracy counts the factors of captions that samples show."""

from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import gaussian_blur

from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_images
from pipelines.data import open_images
from pipelines.data.composition.scenes import parse_caption
from pipelines.evaluate import caption_accuracy as captions_module
from pipelines.evaluate.caption_accuracy import (
    ALL,
    EXACT,
    caption_accuracy,
    check_captions,
    checks_captions,
    real_pictures,
    reconstruction_by,
)
from pipelines.evaluate.caption_figure import draw_captions
from pipelines.evaluate.caption_table import caption_rows, caption_table
from pipelines.evaluate.samples import Samples
from pipelines.models.checkpoint import load_tokenizer
from tests.pipelines.conftest import write_tokenizer
from tests.pipelines.data.conftest import config

DATA = config({"kind": "composition", "test": 60, "relation_fraction": 0.3, "count_fraction": 0.2})
SINGLE = config({"kind": "composition"})


def written(folder, images) -> list:
    files = [folder / f"{row}.png" for row in range(len(images))]
    save_images(files, images)
    return files


def samples_of(folder, images, captions) -> Samples:
    return Samples(folder, written(folder, images), [-1] * len(captions), None, [0.0] * len(captions), {}, captions)


def perfect(images):
    return images


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Samples:
    """The test split of all kinds of scenes, as if it had been sampled."""
    batch = open_images(DATA, "test").read_batch(range(60))
    captions = [row.text or "" for row in batch.metadata]
    return samples_of(tmp_path_factory.mktemp("real"), batch.image, captions)


def drawn(captions) -> torch.Tensor:
    scenes = [parse_caption(caption) for caption in captions]
    return real_pictures(range(len(captions)), [scene for scene in scenes if scene], 32)


HEART = "a large pink solid heart pointing down, in the centre, on a white ground"


def single(folder, image_caption: str, caption: str = HEART):
    (verdict,) = check_captions(samples_of(folder, drawn([image_caption]), [caption]), SINGLE, perfect)
    return verdict


def test_real_pictures_show_everything(real):
    found = caption_accuracy(check_captions(real, DATA, perfect))
    assert [group.scene for group in found.groups] == ["object", "relation", "count"]
    assert [group.images for group in found.groups] == [31, 17, 12] and found.without_scene == 0
    for group in found.groups:
        shares = [*group.samples.values(), *group.reconstructions.values()]
        assert group.held_out and {share.mean for share in shares} == {1.0}


def test_a_factor_that_differs_is_wrong_and_the_others_are_right(tmp_path):
    for word, other, factor in [
        ("pink", "red", "colour"),
        ("solid", "striped", "fill"),
        ("centre", "top left", "position"),
    ]:
        (folder := tmp_path / factor).mkdir()
        verdict = single(folder, HEART.replace(word, other))
        assert verdict.wrong == [factor] and not verdict.sample[ALL] and not verdict.sample[EXACT]
        assert all(verdict.reconstruction.values())


def test_what_shows_no_scene_shows_no_factor(tmp_path):
    (verdict,) = check_captions(
        samples_of(tmp_path, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [HEART]), SINGLE, perfect
    )
    assert not any(verdict.sample.values()) and all(verdict.reconstruction.values())


def test_a_scene_of_another_kind_shows_no_factor(tmp_path):
    verdict = single(tmp_path, "one pink heart on a white ground")
    assert not any(verdict.sample.values())


def test_a_pair_may_be_read_from_either_end(tmp_path):
    caption = "a red arrow right of a blue T on a grey ground"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert not single(tmp_path / "a", "a blue T left of a red arrow on a grey ground", caption).wrong
    assert single(tmp_path / "b", "a blue T right of a red arrow on a grey ground", caption).wrong == ["relation"]


def test_the_ceiling_is_that_of_the_tokenizer(real):
    blurred = check_captions(real, DATA, lambda images: gaussian_blur(images, [15, 15], [3.0, 3.0]))
    for group in caption_accuracy(blurred).groups:
        assert group.samples[ALL].mean == 1 and group.reconstructions[ALL].mean < 0.3


def test_an_image_is_exact_if_it_is_the_reconstruction(tmp_path):
    """Whatever the checker thinks of it."""
    for number, (shift, exact) in enumerate([(0, True), (1, True), (9, False)]):
        (folder := tmp_path / str(number)).mkdir()
        samples = samples_of(folder, drawn([HEART]) - shift, [HEART])
        (verdict,) = check_captions(samples, SINGLE, perfect)
        assert verdict.sample[EXACT] is exact and verdict.sample[ALL]


def test_scenes_without_a_picture_of_their_own_are_never_exact(real):
    for group in caption_accuracy(check_captions(real, DATA, perfect)).groups:
        assert (EXACT in group.samples) == (group.scene == "object")


def test_captions_of_training_are_counted_apart(tmp_path):
    data = config({"kind": "composition", "train": 20, "test": 20})
    captions = [
        row.text for split in ("train", "test") for row in open_images(data, split).read_batch(range(20)).metadata
    ]
    found = caption_accuracy(check_captions(samples_of(tmp_path, drawn(captions), captions), data, perfect))
    assert [(group.held_out, group.images) for group in found.groups] == [(True, 20), (False, 20)]


def test_captions_without_a_scene_are_left_out(tmp_path):
    samples = samples_of(tmp_path, drawn([HEART, HEART]), ["a cat", HEART])
    verdicts = check_captions(samples, SINGLE, perfect)
    found = caption_accuracy(verdicts)
    assert verdicts[0] is None and found.without_scene == 1 and found.groups[0].images == 1
    assert "1, not counted" in caption_rows(asdict(found))[-1]


def test_shares_come_with_their_standard_error(tmp_path):
    captions = [HEART, HEART.replace("pink", "red"), HEART.replace("pink", "blue"), HEART.replace("pink", "cyan")]
    images = drawn(captions)
    images[0] = images[1]
    found = caption_accuracy(
        check_captions(
            samples_of(tmp_path, images, captions), config({"kind": "composition", "held_out_fraction": 0}), perfect
        )
    )
    (group,) = found.groups
    assert group.samples["colour"].mean == 0.75
    assert group.samples["colour"].standard_error == pytest.approx(0.25)


def test_a_process_checks_its_share_block_by_block(real, monkeypatch):
    read, read_images = [], Samples.read_images
    monkeypatch.setattr(Samples, "read_images", lambda self, rows: read.append(rows) or read_images(self, rows))
    monkeypatch.setattr(captions_module, "IMAGES_AT_ONCE", 20)
    monkeypatch.setattr(captions_module, "gather", lambda values, processes: values)
    assert len(check_captions(real, DATA, perfect, SecondOfTwo())) == 30
    assert read == [range(30, 50), range(50, 60)]


class SecondOfTwo:
    device, num_processes, process_index, is_main_process = torch.device("cpu"), 2, 1, False


def test_the_report_tells_each_factor_and_the_ceiling(real):
    found = asdict(caption_accuracy(check_captions(real, DATA, perfect)))
    lines = dict(caption_rows(found))
    assert lines["samples that show their caption: one object, never trained on"] == "100.0% ± 0.0% of 31"
    assert "| other colour | 100.0% ± 0.0% | 100.0% ± 0.0% |" in caption_table(found)
    assert "| token-exact | 100.0% ± 0.0% |  |" in caption_table(found)


def test_the_figure_shows_every_image(real, tmp_path):
    verdicts = [verdict for verdict in check_captions(real, DATA, perfect) if verdict]
    draw_captions(tmp_path / "captions.png", list(real.read_images(range(8))), verdicts[:8])
    with Image.open(tmp_path / "captions.png") as picture:
        assert picture.width > 600 and picture.height > 300


def test_an_untrained_tokenizer_draws_no_scene(real, tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "t", {"kind": "vq", "num_codes": 8, "dim": 4}))
    found = caption_accuracy(check_captions(real, DATA, reconstruction_by(tokenizer, "cpu")))
    assert all(group.reconstructions[ALL].mean == 0 for group in found.groups)


def test_only_compositions_in_colour_are_checked():
    assert checks_captions(DATA)
    assert not checks_captions(config({"kind": "composition"}, mode="L"))
    assert not checks_captions(config({"kind": "shapes"}))


def test_samples_without_prompts_are_refused(real):
    with pytest.raises(UserError, match="found samples without prompts"):
        check_captions(replace(real, prompts=None), DATA, perfect)
