"""The spec of a token dataset: one hash of what decides the tokens, mismatches named on both sides."""

import json

import pytest
from pydantic import ValidationError

from pipelines.base.errors import UserError
from pipelines.data.preprocess import Preprocess
from pipelines.models.token_spec import (
    Compute,
    Source,
    TokenizerIdentity,
    TokenSpec,
    differences,
    read_spec,
    smallest_dtype,
)

IDENTITY = TokenizerIdentity(kind="vq", library_version="1", fingerprint="a" * 64, codebook_sha256="b" * 64)
SPEC = TokenSpec(
    num_codes=512,
    num_quantizers=2,
    levels=((4, 3),),
    dtype="uint16",
    tokenizer=IDENTITY,
    preprocess=Preprocess(size=32),
    classes=("cat", "dog"),
    compute=Compute(torch="2.9", device="cpu", batch=64),
    source=Source(data={"source": {"kind": "shapes"}}, rows={"train": 10}),
    shards={"train": 2},
)


def test_a_spec_survives_json_with_its_hash(tmp_path):
    (tmp_path / "token_spec.json").write_text(json.dumps(SPEC.model_dump(mode="json")))
    read = read_spec(tmp_path / "token_spec.json")
    assert read == SPEC
    assert read.sha256 == SPEC.sha256


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"preprocess": Preprocess(size=32, crop="pad")}, "preprocess.crop"),
        ({"num_codes": 511}, "num_codes"),
        ({"classes": ("dog", "cat")}, "classes"),
        ({"shards": {"train": 3}}, "shards.train"),
        ({"compute": Compute(torch="3.0", device="cpu", batch=64)}, "compute.torch"),
        ({"source": SPEC.source.model_copy(update={"rows": {"train": 11}})}, "source.rows.train"),
        ({"source": SPEC.source.model_copy(update={"digests": {"train": "d" * 64}})}, "source.digests.train"),
        ({"tokenizer": IDENTITY.model_copy(update={"fingerprint": "c" * 64})}, "tokenizer.fingerprint"),
    ],
)
def test_what_decides_the_tokens_counts_in_the_hash_and_is_named(changed, key):
    other = SPEC.model_copy(update=changed)
    assert other.sha256 != SPEC.sha256
    assert [line.split(":")[0] for line in differences(other, SPEC)] == [key]


def test_where_files_lie_and_who_wrote_them_do_not_count_in_the_hash():
    elsewhere = Source(data={"source": {"kind": "huggingface", "path": "/other"}}, rows={"train": 10})
    other = SPEC.model_copy(
        update={"source": elsewhere, "tokenizer": IDENTITY.model_copy(update={"library_version": "2"})}
    )
    assert other.sha256 == SPEC.sha256
    assert differences(other, SPEC) == []


def test_a_stored_spec_loads_with_its_hash_when_options_have_been_added():
    """Whatever part of the spec a later version adds an option with a default to."""

    class LaterPreprocess(Preprocess):
        gamma: float = 1.0

    class LaterCompute(Compute):
        deterministic: bool = True

    class LaterIdentity(TokenizerIdentity):
        licence: str | None = None

    class LaterSource(Source):
        language: str | None = None

    class LaterSpec(TokenSpec):
        preprocess: LaterPreprocess
        compute: LaterCompute
        tokenizer: LaterIdentity
        source: LaterSource
        colour_space: str = "sRGB"

    later = LaterSpec.model_validate_json(json.dumps(SPEC.model_dump(mode="json")))
    assert later.colour_space == "sRGB"
    assert later.sha256 == SPEC.sha256


@pytest.mark.parametrize(("codes", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_tokens_take_the_smallest_type_that_holds_the_last_code(codes, dtype):
    assert smallest_dtype(codes) == dtype


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "uint32"},
        {"levels": ((33, 3),)},
        {"levels": ()},
        {"classes": ("cat", "cat")},
        {"shards": {"test": 1}},
        {"colour": 1},
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(wrong):
    with pytest.raises(ValidationError):
        TokenSpec.model_validate(SPEC.model_dump() | wrong)


def test_a_foreign_tokenizer_is_refused_naming_both_sides():
    SPEC.check_tokenizer("a" * 64)
    with pytest.raises(UserError) as error:
        SPEC.check_tokenizer("c" * 64, tokenizer="runs/mine", tokens="tokens/theirs")
    for part in ("runs/mine", "tokens/theirs", "cccccccccccc", "aaaaaaaaaaaa"):
        assert part in str(error.value)


def test_tokens_of_another_source_fit_but_not_those_of_other_classes():
    elsewhere = SPEC.model_copy(update={"source": Source(data={}, rows={"test": 3}), "shards": {"test": 1}})
    SPEC.check_same_codes(elsewhere, "the prior", "tokens/")
    with pytest.raises(UserError, match=r"the prior has classes \('cat', 'dog'\), tokens/ has None"):
        SPEC.check_same_codes(elsewhere.model_copy(update={"classes": None}), "the prior", "tokens/")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "commaVQ"}'])
def test_a_file_that_is_no_spec_is_named(tmp_path, content):
    path = tmp_path / "token_spec.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"token_spec\.json"):
        read_spec(path)
