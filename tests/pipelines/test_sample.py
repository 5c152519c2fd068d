"""Sampling into a folder: an image is a function of index, seed and label, whatever happens around it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from pipelines.base.errors import UserError
from pipelines.base.image_grids import to_uint8
from pipelines.evaluate.samples import read_note, read_samples
from pipelines.models.checkpoint import load_tokenizer
from pipelines.models.image_pipeline import ImageGenerationPipeline
from pipelines.models.image_seeds import image_seeds
from pipelines.reconstruct import ReconstructionRequest, reconstruct
from pipelines.sample import SampleRequest, sample
from tests.pipelines.conftest import write_vae


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def images(folder):
    found = read_samples(folder)
    return found.read_images(range(len(found.files)))


def entries(folder):
    """What samples.json says of each image; log-likelihoods to a hundredth, since sums round by batch size."""
    images = json.loads((folder / "samples.json").read_text())["images"]
    return [{**entry, "logprob": pytest.approx(entry["logprob"], abs=0.01)} for entry in images]


def test_the_folder_describes_all_of_its_images(image_pipeline, tmp_path):
    request = SampleRequest(labels=("red circle", 3), num_images=5, seed=4, options={"top_k": 8})
    found = read_samples(sample(image_pipeline, tmp_path / "s", request))
    pipe = ImageGenerationPipeline.from_pretrained(image_pipeline)
    out = pipe(label=[0, 3, 0, 3, 0], generator=4, top_k=8, output_type="pt")
    assert torch.equal(images(tmp_path / "s"), to_uint8(out.images))
    assert found.labels == [0, 3, 0, 3, 0]
    assert found.logprobs == pytest.approx(out.logprobs.sum(1).tolist(), abs=1e-3)
    written = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert written["request"]["options"]["top_k"] == 8
    assert [entry["seed"] for entry in written["images"]] == image_seeds(4, 5)
    assert written["images"][0]["file"] == "images/00000_red-circle.png"
    with Image.open(tmp_path / "s" / "samples.png") as grid:
        assert grid.width > 2 * 32 and grid.height > 3 * 32


def test_brackets_in_a_path_are_shown_as_they_are(image_pipeline, tmp_path, capsys):
    for _ in range(2):
        sample(image_pipeline, tmp_path / "[red]a[/b]", SampleRequest(num_images=1))
    assert f"{tmp_path}/[red]a[/b]: already sampled" in capsys.readouterr().err


def test_without_labels_every_class_has_its_turn(image_pipeline, tmp_path):
    found = read_samples(sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=30)))
    assert found.labels == [i % len(found.classes) for i in range(30)]


def test_rerunning_fills_gaps_and_more_images_are_added(image_pipeline, tmp_path):
    sample(image_pipeline, tmp_path / "whole", SampleRequest(num_images=6))
    sample(image_pipeline, tmp_path / "grown", SampleRequest(num_images=3, batch_size=2))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "grown" / "images").iterdir()}
    first, second, third = sorted(kept)
    first.unlink()
    second.write_bytes(second.read_bytes()[:50])  # torn by a crash
    (tmp_path / "grown" / "samples.json").unlink()
    sample(image_pipeline, tmp_path / "grown", SampleRequest(num_images=6, batch_size=1))
    assert third.stat().st_mtime_ns == kept[third]
    assert torch.equal(images(tmp_path / "grown"), images(tmp_path / "whole"))
    assert files(tmp_path / "grown").keys() == files(tmp_path / "whole").keys()
    assert json.loads((tmp_path / "grown" / "samples.json").read_text())["images"] == entries(tmp_path / "whole")


def test_a_finished_folder_is_left_alone(image_pipeline, tmp_path, capfd):
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=2))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")}
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=2))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")} == before
    assert "already sampled" in " ".join(capfd.readouterr().err.split())


def test_other_options_are_refused_until_overwriting(image_pipeline, tmp_path):
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=2, seed=0))
    with pytest.raises(UserError, match=r"holds other samples \(seed: there 0, asked 1\)"):
        sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=2, seed=1))
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=1, seed=1), overwrite=True)
    assert len(files(tmp_path / "s")) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").touch()
    with pytest.raises(UserError, match="was not written by"):
        sample(image_pipeline, tmp_path / "mine", SampleRequest(num_images=1))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_never_claimed(image_pipeline, tmp_path, overwrite):
    photos = tmp_path / "photos"
    (photos / "images").mkdir(parents=True)
    (photos / "images" / "00000.png").write_text("a wedding")
    (photos / "request.json").write_text("{}")
    for _ in range(2):  # a first call must not leave a mark that lets the second one delete
        with pytest.raises(UserError, match="was not written by `smalti sample`"):
            sample(image_pipeline, photos, SampleRequest(num_images=1), overwrite=overwrite)
    assert (photos / "images" / "00000.png").read_text() == "a wedding"
    assert sorted(path.name for path in photos.iterdir()) == ["images", "request.json"]


def test_overwriting_deletes_our_own_files_only(image_pipeline, tmp_path):
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=2))
    (tmp_path / "s" / "thesis.tex").write_text("mine")
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=1, seed=1), overwrite=True)
    assert (tmp_path / "s" / "thesis.tex").read_text() == "mine"
    assert len(files(tmp_path / "s")) == 1


def test_guidance_without_a_trained_null_condition_is_refused_before_any_work(image_pipeline, tmp_path):
    folder = Path(shutil.copytree(image_pipeline, tmp_path / "p"))
    config = json.loads((folder / "prior" / "config.json").read_text())
    config["model"]["condition_dropout"] = 0
    (folder / "prior" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"guidance_scale: found 2\.0, expected 1"):
        sample(folder, tmp_path / "s", SampleRequest(num_images=1, options={"guidance_scale": 2.0}))
    assert not (tmp_path / "s").exists()


def test_a_refused_request_deletes_nothing(image_pipeline, tmp_path):
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=2))
    before = files(tmp_path / "s")
    for wrong in ({"labels": ("purple elephant",)}, {"options": {"top_p": 7.0}}):
        with pytest.raises(UserError):
            sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=1, **wrong), overwrite=True)
    assert files(tmp_path / "s") == before and read_samples(tmp_path / "s")


@pytest.mark.parametrize("name", ["request.json", "samples.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"images": 3, "request": 4}'])
def test_a_damaged_note_is_written_again(image_pipeline, tmp_path, name, content):
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=2))
    whole = images(tmp_path / "s")
    (tmp_path / "s" / name).write_text(content)
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=2), replace_others=True)
    assert torch.equal(images(tmp_path / "s"), whole)


def test_other_samples_make_room_where_that_is_asked_for(image_pipeline, tmp_path):
    sample(image_pipeline, tmp_path / "s", SampleRequest(labels=(0,), num_images=2))
    sample(image_pipeline, tmp_path / "s", SampleRequest(labels=(1,), num_images=1), replace_others=True)
    assert read_samples(tmp_path / "s").labels == [1]
    assert len(files(tmp_path / "s")) == 1


def test_more_images_than_a_machine_can_hold_are_refused():
    with pytest.raises(ValidationError, match="num_images"):
        SampleRequest(num_images=3_000_000_000)


def test_a_named_pipe_in_the_place_of_an_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "00000.png")
    assert read_note(tmp_path / "00000.png") == {}


@pytest.mark.parametrize("content", ["[]", "{}", '{"images": [{"file": "images/00000.png"}]}'])
def test_damaged_samples_are_one_message(tmp_path, content):
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(UserError, match=r"samples\.json"):
        read_samples(tmp_path)


def test_samples_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no finished samples \(no samples\.json\)"):
        read_samples(tmp_path)


TWO = """
import json, sys
from pathlib import Path
from pipelines.data import DataConfig
from pipelines.reconstruct import ReconstructionRequest, reconstruct
from pipelines.sample import SampleRequest, sample
image_pipeline, output, data = sys.argv[1:]
sample(image_pipeline, Path(output) / "s", SampleRequest(num_images=5, batch_size=2))
reconstruct(
    image_pipeline, DataConfig.model_validate_json(data), Path(output) / "r", ReconstructionRequest(num_pairs=4)
)
"""


@pytest.mark.slow
def test_two_processes_write_what_one_writes(image_pipeline, make_data, tmp_path):
    data = make_data(train=8, validation=8, test=21)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", TWO, str(image_pipeline), str(tmp_path / "two"), data.model_dump_json()]
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    sample(image_pipeline, tmp_path / "one" / "s", SampleRequest(num_images=5))
    reconstruct(image_pipeline, data, tmp_path / "one" / "r", ReconstructionRequest(num_pairs=4))
    assert torch.equal(images(tmp_path / "two" / "s"), images(tmp_path / "one" / "s"))
    one, two = (json.loads((tmp_path / name / "r" / "reconstruction.json").read_text()) for name in ("one", "two"))
    assert two["request"] == one["request"]
    assert one["fidelity"].pop("negative_elbo") is two["fidelity"].pop("negative_elbo") is None  # approx takes numbers
    assert two["fidelity"] == pytest.approx(one["fidelity"], rel=1e-6)


def test_fewer_images_than_there_are_need_nothing_to_be_drawn(image_pipeline, tmp_path, capfd):
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=3))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=2))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")} == before
    said = " ".join(capfd.readouterr().err.split())
    assert "already sampled, 3 images; the first 2 are those asked for; nothing to do" in said


def test_fewer_images_than_a_killed_command_was_to_draw(image_pipeline, tmp_path):
    """Those that it has drawn already stay, and a larger number finds them again."""
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=3))
    (tmp_path / "s" / "samples.json").unlink()
    before = files(tmp_path / "s")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "images").iterdir()}
    for number in (2, 3):
        found = read_samples(sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=number)))
        assert len(found.labels) == number
        assert files(tmp_path / "s") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "images").iterdir()} == stamps


def test_fewer_images_keep_the_first_where_the_others_make_room(image_pipeline, tmp_path):
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=3))
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "images").iterdir()}
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=2), replace_others=True)
    kept = read_samples(tmp_path / "s").files
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s" / "images").iterdir()} == {
        path: stamps[path] for path in kept
    }
    assert len(kept) == 2


def test_overwriting_leaves_no_more_images_than_asked_for(image_pipeline, tmp_path):
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=3))
    sample(image_pipeline, tmp_path / "s", SampleRequest(num_images=2), overwrite=True)
    assert len(list((tmp_path / "s" / "images").iterdir())) == len(read_samples(tmp_path / "s").labels) == 2


def test_a_continuous_tokenizer_draws_from_its_latent_prior(tiny_vae, tmp_path):
    found = read_samples(sample(tiny_vae, tmp_path / "s", SampleRequest(num_images=5, seed=4)))
    model = load_tokenizer(tiny_vae).model
    for index, seed in enumerate(image_seeds(4, 5)):
        z = torch.randn(1, 5, 1, 1, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            assert torch.equal(found.read_images(range(index, index + 1)), to_uint8(model.decode(z)))
        expected = torch.distributions.Normal(0, 1).log_prob(z).sum().item()
        assert found.logprobs[index] == pytest.approx(expected, abs=2e-3)
    assert found.labels == [-1] * 5


def test_samples_of_a_latent_prior_depend_on_neither_batch_nor_order_and_continue(tiny_vae, tmp_path):
    whole = files(sample(tiny_vae, tmp_path / "whole", SampleRequest(num_images=7)))
    parts = sample(tiny_vae, tmp_path / "parts", SampleRequest(num_images=3, batch_size=2))
    (parts / "images" / "00001.png").unlink()
    assert files(sample(tiny_vae, parts, SampleRequest(num_images=7, batch_size=3))) == whole


def test_a_conditional_tokenizer_draws_the_labels_that_were_asked_for(tmp_path):
    condition = {"kind": "concatenation", "num_classes": 3, "dim": 4}
    folder = write_vae(tmp_path / "t", classes=("a", "b", "c"), condition=condition)
    found = read_samples(sample(folder, tmp_path / "s", SampleRequest(labels=("c", 0), num_images=4)))
    assert found.labels == [2, 0, 2, 0] and found.files[0].name == "00000_c.png"
    assert read_samples(sample(folder, tmp_path / "all", SampleRequest(num_images=4))).labels == [0, 1, 2, 0]
    model, seed = load_tokenizer(folder).model, image_seeds(0, 1)[0]
    z = torch.randn(1, 5, 1, 1, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = to_uint8(model.decode(z, torch.tensor([2])))
    assert torch.equal(found.read_images(range(1)), expected)


def test_a_temperature_multiplies_the_noise_of_latents(tiny_vae, tmp_path):
    folder = sample(tiny_vae, tmp_path / "s", SampleRequest(num_images=1, options={"temperature": 0.25}))
    model, seed = load_tokenizer(tiny_vae).model, image_seeds(0, 1)[0]
    with torch.no_grad():
        z = 0.25 * model.latent_distribution().sample(1, torch.Generator().manual_seed(seed))
        assert torch.equal(read_samples(folder).read_images(range(1)), to_uint8(model.decode(z)))


def test_a_temperature_of_one_is_the_prior_as_it_is(tiny_vae, tmp_path):
    plain = sample(tiny_vae, tmp_path / "s", SampleRequest(num_images=2))
    note = (plain / "samples.json").stat().st_mtime_ns
    sample(tiny_vae, plain, SampleRequest(num_images=2, options={"temperature": 1.0}))
    assert (plain / "samples.json").stat().st_mtime_ns == note
    with pytest.raises(UserError, match="holds other samples"):
        sample(tiny_vae, plain, SampleRequest(num_images=2, options={"temperature": 0.5}))


def test_an_image_of_a_conditional_latent_prior_is_that_of_its_label_in_every_batch(tmp_path):
    changes = {
        "condition": {"kind": "film", "num_classes": 3, "dim": 4},
        "latent_prior": {"kind": "flow", "conditional": True, "transforms": 2, "widths": (8,)},
    }
    folder = write_vae(tmp_path / "t", classes=("a", "b", "c"), **changes)
    together, alone = (
        read_samples(sample(folder, tmp_path / str(size), SampleRequest(num_images=5, batch_size=size)))
        for size in (5, 1)
    )
    model, drawn = load_tokenizer(folder).model, zip(together.labels, image_seeds(0, 5), strict=True)
    with torch.no_grad():
        streams = [(torch.Generator().manual_seed(seed), torch.tensor([label])) for label, seed in drawn]
        expected = to_uint8(torch.cat([model.sample(1, stream, label) for stream, label in streams])).int()
    for found in (together, alone):
        assert (found.read_images(range(5)).int() - expected).abs().max() <= 1  # rounding


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (SampleRequest(labels=("circle",)), "this tokenizer is unconditional"),
        (SampleRequest(options={"top_k": 5, "temperature": 0.5}), "top_k: is an option of a prior over tokens"),
        (SampleRequest(options={"temperature": None}), "temperature: found None, expected a finite number above 0"),
        (SampleRequest(options={"temperature": "hot"}), "temperature: found 'hot', expected"),
        (SampleRequest(options={"temperature": 0}), "temperature: found 0, expected a finite number above 0"),
        (SampleRequest(options={"temperature": float("nan")}), "temperature: found nan"),
    ],
)
def test_a_latent_prior_refuses_what_it_does_not_know(tiny_vae, tmp_path, request_, message):
    with pytest.raises(UserError, match=message):
        sample(tiny_vae, tmp_path / "s", request_)
    assert not (tmp_path / "s").exists()


def test_a_tokenizer_with_codes_has_no_prior_of_its_own(tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer with codes \(vq\)"):
        sample(tiny_tokenizer, tmp_path / "s")


def test_a_run_without_a_model_is_said_to_have_none(tmp_path):
    (tmp_path / "recipe.yaml").write_text("kind: tokenizer\n")
    with pytest.raises(UserError, match="no model was saved yet"):
        sample(tmp_path, tmp_path / "s", SampleRequest(num_images=1))
