"""Laws of the spec: one canonical hash, mismatches named on both sides."""

import json

import pytest
from pydantic import ValidationError

from pipelines.base.errors import UserError
from pipelines.data.preprocess import Preprocess
from pipelines.models.token_spec import Compute, Source, TokenizerIdentity, TokenSpec, differences, narrowest, read_spec

IDENTITY = TokenizerIdentity(kind="vq", library_version="1", fingerprint="a" * 64, codebook_sha256="b" * 64)
SPEC = TokenSpec(
    codebook_size=512,
    num_codebooks=2,
    grid=(4, 3, 2),
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


def test_every_field_counts_in_the_hash():
    changed = SPEC.model_copy(update={"preprocess": Preprocess(size=32, crop="pad")})
    assert changed.sha256 != SPEC.sha256
    assert differences(changed, SPEC) == ["preprocess.crop: found 'pad', expected 'center'"]


@pytest.mark.parametrize(("codes", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_tokens_take_the_narrowest_type_that_holds_the_last_code(codes, dtype):
    assert narrowest(codes) == dtype


@pytest.mark.parametrize("wrong", [{"dtype": "uint32"}, {"grid": (4, 3, 1)}, {"shards": {"test": 1}}, {"colour": 1}])
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
