"""A model folder loads exactly, or says what is wrong with it."""

import json
import resource
import time

import pytest
import torch
from pydantic import create_model
from pydantic.fields import FieldInfo
from torch import nn

from pipelines.base.errors import UserError
from pipelines.data.preprocess import Preprocess
from pipelines.models.checkpoint import (
    TokenizerFolder,
    fingerprint,
    load_prior,
    load_tokenizer,
    resolve_folder,
    save_tokenizer,
)
from tokenizer import Autoencoder, AutoencoderConfig
from tokenizer.backbones.conv import ConvConfig
from tokenizer.bottlenecks.vq import VQ, VQConfig
from tokenizer.likelihoods import NormalConfig

PREPROCESS = Preprocess(mode="L", size=8)
CONFIG = {
    "image_size": 8,
    "channels": 1,
    "backbone": {"kind": "conv", "widths": [4, 8], "residual_blocks": 1, "residual_width": 4},
    "bottleneck": {"kind": "vq", "num_codes": 16, "dim": 4},
    "likelihood": {"kind": "normal"},
}


def autoencoder(**changes):
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig.model_validate(CONFIG | changes)).eval()


@pytest.fixture
def folder(tmp_path):
    save_tokenizer(tmp_path / "model", autoencoder(), PREPROCESS)
    return tmp_path / "model"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_saved_tokenizer_comes_back_bit_for_bit(folder):
    before, after = autoencoder(), load_tokenizer(folder)
    assert after.model.config == before.config and after.preprocess == PREPROCESS and not after.model.training
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name]), name


def test_the_fingerprint_knows_what_makes_tokens_and_nothing_else():
    model = autoencoder()
    identity = fingerprint(model, PREPROCESS)
    with torch.no_grad():
        next(model.decoder.parameters()).add_(1)
    assert fingerprint(model, PREPROCESS) == identity
    assert fingerprint(model, Preprocess(mode="L", size=8, resample="nearest")) != identity
    for part in (model.encoder, model.bottleneck):
        assert isinstance(part, nn.Module)
        tensor = next(t for t in part.state_dict().values() if t.is_floating_point())
        tensor.add_(1e-3)
        assert fingerprint(model, PREPROCESS) != identity
        tensor.sub_(1e-3)


def test_statistics_and_options_of_training_change_no_fingerprint():
    model = autoencoder()
    identity = fingerprint(model, PREPROCESS)
    assert isinstance(model.bottleneck, VQ)
    codebook = model.bottleneck.codebooks[0]
    codebook.get_buffer("ema_count").add_(1)
    codebook.get_buffer("ema_sum").add_(1)
    assert fingerprint(model, PREPROCESS) == identity
    training = {"decay": 0.5, "dead_code_threshold": 2.0, "restart_every": 3, "gradient_estimator": "rotation"}
    assert fingerprint(autoencoder(bottleneck=CONFIG["bottleneck"] | training), PREPROCESS) == identity
    for other in ({"distance": "cosine"}, {"kind": "fsq", "levels": [4, 4]}, {"kind": "fsq", "levels": [2, 8]}):
        bottleneck = other if "kind" in other else CONFIG["bottleneck"] | other
        assert fingerprint(autoencoder(bottleneck=bottleneck), PREPROCESS) != identity


def test_a_folder_written_before_an_option_was_added_still_loads(folder, monkeypatch):
    """The option models of the stored folder have one option more now, with a default."""
    identity = load_tokenizer(folder).fingerprint
    for owner in (AutoencoderConfig, VQConfig, ConvConfig, NormalConfig):
        monkeypatch.setitem(owner.model_fields, "added", FieldInfo(annotation=int, default=5))
        owner.model_rebuild(force=True)
    AutoencoderConfig.model_rebuild(force=True)
    TokenizerFolder.model_rebuild(force=True)
    try:
        loaded = load_tokenizer(folder)
        config = loaded.model.config
        assert [vars(options)["added"] for options in (config, config.bottleneck)] == [5, 5]
        assert loaded.fingerprint == identity
    finally:
        monkeypatch.undo()
        for owner in (VQConfig, ConvConfig, NormalConfig, AutoencoderConfig, TokenizerFolder):
            owner.model_rebuild(force=True)


def with_another_field(config):
    """The same values in a class that has one more field, which has a default."""
    kind = create_model(f"New{type(config).__name__}", __base__=type(config), new_option=(int, 3))
    return kind.model_validate({name: getattr(config, name) for name in type(config).model_fields})


@pytest.mark.parametrize("part", ["preprocess", "backbone", "bottleneck", "likelihood", None])
def test_a_new_option_with_a_default_changes_no_fingerprint(part):
    before = autoencoder()
    identity = fingerprint(before, PREPROCESS)
    if part == "preprocess":
        assert fingerprint(before, with_another_field(PREPROCESS)) == identity
        return
    config = before.config
    if part is None:
        before.config = with_another_field(config)
    else:
        before.config = config.model_copy(update={part: with_another_field(getattr(config, part))})
    assert fingerprint(before, PREPROCESS) == identity


def test_a_folder_from_before_an_option_was_added_still_loads(folder):
    """Its config.json lacks the option, which then is at its default, as all of these are."""
    content = json.loads((folder / "config.json").read_text())
    stored = {"preprocess": {"mode": "L", "size": 8}, "model": {**CONFIG}}
    (folder / "config.json").write_text(json.dumps(content | stored))
    assert load_tokenizer(folder).fingerprint == content["fingerprint"]


@pytest.mark.parametrize("changes", [{"decay": 0.5}, {"dead_code_threshold": 0.25}, {"gradient_estimator": "rotation"}])
def test_options_of_training_do_not_count(changes):
    bottleneck = CONFIG["bottleneck"]
    model, other = autoencoder(), autoencoder(bottleneck=bottleneck | changes)
    assert fingerprint(model, PREPROCESS) == fingerprint(other, PREPROCESS)


def test_statistics_of_training_do_not_count_and_the_codebook_does():
    model = autoencoder()
    identity = fingerprint(model, PREPROCESS)
    assert isinstance(model.bottleneck, nn.Module)
    state = model.bottleneck.state_dict()
    assert {name.rpartition(".")[2] for name in state} >= {"embedding", "ema_count", "ema_sum"}
    for name, tensor in state.items():
        before = tensor.clone()
        tensor.copy_(~tensor if tensor.dtype == torch.bool else tensor + 1)
        assert (fingerprint(model, PREPROCESS) != identity) == name.endswith(".embedding"), name
        tensor.copy_(before)


def test_a_flipped_byte_is_seen(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: sha256 is .* corrupted"):
        load_tokenizer(folder)


def test_a_torn_file_with_a_matching_hash_is_seen(folder):
    import hashlib

    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    edit(folder / "config.json", weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_tokenizer(folder)


def test_weights_of_another_shape_are_named(folder):
    content = json.loads((folder / "config.json").read_text())
    content["model"]["bottleneck"]["num_codes"] = 32
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"does not fit config.json: bottleneck\..* has shape .*, expected"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("bottleneck", "num_codes", 10**9),
        ("bottleneck", "num_codes", 60_000),
        ("bottleneck", "dim", 5),
        ("bottleneck", "dim", 10**40),
        ("backbone", "widths", [4, 60_000]),
        ("backbone", "widths", [4] * 3000),
        ("backbone", "residual_blocks", 60_000),
        ("backbone", "residual_width", 2**31),
    ],
)
def test_sizes_are_held_against_the_header_before_anything_is_allocated(folder, block, key, value):
    content = json.loads((folder / "config.json").read_text())
    content["model"][block][key] = value
    (folder / "config.json").write_text(json.dumps(content))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UserError, match=r"config\.json"):
        load_tokenizer(folder)
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_an_edited_fingerprint_unknown_key_or_format_is_named(folder):
    edit(folder / "config.json", fingerprint="0" * 64)
    with pytest.raises(UserError, match="fingerprint is 000000000000"):
        load_tokenizer(folder)
    edit(folder / "config.json", colour="blue")
    with pytest.raises(UserError, match="colour: unknown key"):
        load_tokenizer(folder)
    edit(folder / "config.json", format="smalti-tokenizer/9")
    with pytest.raises(UserError, match="found format 'smalti-tokenizer/9', expected 'smalti-tokenizer/1'"):
        load_tokenizer(folder)
    with pytest.raises(UserError, match="expected 'smalti-prior/1'"):
        load_prior(folder)


def test_missing_weights_and_folders_are_named(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: missing"):
        load_tokenizer(folder)
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no config\.json, best/ or last/"):
        load_tokenizer(tmp_path)


def test_a_run_folder_means_its_best_model_else_its_last(tmp_path):
    save_tokenizer(tmp_path / "last", autoencoder(), PREPROCESS)
    assert resolve_folder(tmp_path) == tmp_path / "last"
    save_tokenizer(tmp_path / "best", autoencoder(), PREPROCESS)
    assert resolve_folder(tmp_path) == tmp_path / "best"
    assert resolve_folder(tmp_path / "last") == tmp_path / "last"
