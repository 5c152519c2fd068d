"""Secrets of a recipe never reach what is published; nothing else is lost."""

import pytest

from pipelines.base.redaction import is_secret, redact

SECRETS = [
    {"token": "hf_SECRET"},
    {"use_auth_token": "SECRET"},
    {"accessKey": "SECRET"},
    {"api_key": "SECRET"},
    {"AWS_SECRET_ACCESS_KEY": "SECRET"},
    {"password": 0, "nested": [{"passwd": "SECRET"}]},
    {"storage_options": {"key": "SECRET", "anon": False, "client_kwargs": {"x": "SECRET"}}},
    {"headers": {"X-Any": "SECRET"}},
    {"token": ["SECRET"]},
    {"data_files": {"train": ["https://SECRET:SECRET@host/a.parquet"]}},
    {"path": "https://host/a?X-Amz-Signature=SECRET&X-Amz-Credential=SECRET&part=1"},
    {"path": "https://host/a?sig=SECRET"},
]


@pytest.mark.parametrize("content", SECRETS, ids=range(len(SECRETS)))
def test_no_secret_is_left(content):
    assert "SECRET" not in str(redact({"arguments": content})) and "SECRET" in str(content)


@pytest.mark.parametrize(
    "content",
    [
        {"tokens": "runs/tokens", "tokenizer": {"kind": "vq"}, "key": "file_name", "keep_states": 2},
        {"token": True, "token_spec": None},
        {"path": "owner/name", "data_files": ["https://host/a.parquet?part=1&keys=2", "s3://bucket/x"]},
        {"text": "a: b", "number": 1.5, "none": None, "list": [1, [2]]},
    ],
)
def test_what_is_no_secret_stays(content):
    expected = {name: value for name, value in content.items() if name != "token_spec"}
    assert {name: value for name, value in redact(content).items() if name != "token_spec"} == expected


def test_a_stored_login_and_public_access_stay_asked_for():
    content = {"token": True, "storage_options": {"anon": True}}
    assert redact(content) == content


def test_names():
    assert all(map(is_secret, ("token", "hf_token", "hfToken", "api-key", "private_key", "client_secret")))
    assert not any(map(is_secret, ("tokens", "tokenizer", "key", "keys", "keyboard", "monkey", "authority")))
