"""Damaged and hostile JSON and YAML is one message that names the file, at once and in little memory."""

import time

import pytest

from pipelines.base.documents import (
    MAX_DEPTH,
    MAX_DIGITS,
    dump_yaml,
    parse_json,
    parse_yaml,
    read_json,
    read_json_if_valid,
    read_json_mapping,
    read_yaml,
)
from pipelines.base.errors import UserError

BOMB = "a: &a {x: 1}\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} {{x: *{chr(97 + i)}}}\n" for i in range(20))

HOSTILE_YAML = {
    "recursive anchor": ("&a [*a]", "alias"),
    "bomb of mappings": (BOMB, "alias"),
    "3,000 nested lists": ("[" * 3000 + "]" * 3000, "nested"),
    "3,000 nested mappings": ("{a: " * 3000 + "1" + "}" * 3000, "nested"),
    "3,000 nested blocks": ("- " * 3000 + "1", "nested"),
    "5,000 digits": ("a: " + "9" * 5000, "digits"),
    "5,000 hexadecimal digits": ("a: 0x" + "f" * 5000, "digits"),
    "duplicate key": ("a: 1\nb: 2\na: 3\n", "line 3.*'a'.*twice"),
    "nested duplicate key": ("x:\n  a: 1\n  a: 3\n", "line 3"),
    "key that is true": ("on: 1", "'on'"),
    "key that is a number": ("1: 1", "'1'"),
    "key that is a list": ("[1]: 1", "list"),
    "python object": ("a: !!python/object/apply:os.system ['true']", "YAML"),
    "wrong tag": ("a: !!int many", "YAML"),
    "wrong boolean tag": ("a: !!bool many", "YAML"),
    "wrong date tag": ("a: !!timestamp many", "YAML"),
    "wrong binary": ("a: !!binary 'abcde'", "YAML"),
    "unfinished list": ("a: [1", "line 1"),
    "tab": ("a:\n\t- 1", "line 2"),
    "control character": ("a: \x00", "YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "document"),
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml_is_refused(name):
    text, message = HOSTILE_YAML[name]
    with pytest.raises(UserError, match=message) as refusal:
        parse_yaml(text, "r.yaml")
    assert str(refusal.value).startswith("r.yaml: ") and len(str(refusal.value)) < 400


HOSTILE_JSON = {
    "nothing": ("", "JSON"),
    "half": ('{"a": 1', "JSON"),
    "deep lists": ("[" * 100_000 + "]" * 100_000, "nested"),
    "deep mappings": ('{"a":' * 100_000, "nested"),
    "deep after a string of brackets": ('["' + "[" * 100 + '",' + "[" * 80 + "]" * 81, "nested"),
    "5,000 digits": ('{"a": ' + "9" * 5000 + "}", "digits"),
    "infinity": ('{"a": 1e999}', "finite"),
    "named infinity": ('{"a": -Infinity}', "finite"),
    "not a number": ('{"a": NaN}', "finite"),
    "duplicate key": ('{"a": 1, "a": 2}', "'a' occurs twice"),
    "brackets and a string without an end": ("[]" * 80 + '"\\' * 20_000, "JSON"),
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json_is_refused(name):
    text, message = HOSTILE_JSON[name]
    began = time.process_time()
    with pytest.raises(UserError, match=message) as refusal:
        parse_json(text, "c.json")
    assert time.process_time() - began < 0.5
    assert str(refusal.value).startswith("c.json: ") and len(str(refusal.value)) < 400


def test_brackets_inside_strings_are_no_nesting():
    assert parse_json('{"a": "' + "[{" * 200 + '\\"["}', "c.json") == {"a": "[{" * 200 + '"['}


@pytest.mark.parametrize("read", [parse_json, parse_yaml])
def test_the_limits_themselves_are_allowed(read):
    digits = "9" * MAX_DIGITS
    assert read(f"[{digits}]", "here") == [int(digits)]
    nested = read("[" * MAX_DEPTH + "]" * MAX_DEPTH, "here")
    for _ in range(MAX_DEPTH - 1):
        (nested,) = nested
    assert nested == []


def test_dates_stay_text_and_merging_without_aliases_works():
    assert parse_yaml("a: 2026-02-30", "r") == {"a": "2026-02-30"}
    assert parse_yaml("{<<: {a: 1}, b: 2}", "r") == {"a": 1, "b": 2}


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"- a\n- b\n", b"", b"just words", b"12", b"null"])
@pytest.mark.parametrize("read", [read_yaml, read_json_mapping])
def test_a_file_that_holds_no_mapping_is_named(tmp_path, read, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        read(path)
    assert read_json_if_valid(path) is None


@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_what_is_no_file_is_named(tmp_path, read):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "link", "/dev/zero", tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(UserError):
            read(path)


def test_a_large_yaml_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("a: 1 #" + "x" * 2**20)
    with pytest.raises(UserError, match="larger"):
        read_yaml(path)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("a: 1", encoding="utf-8-sig")
    assert read_yaml(path) == {"a": 1}


def test_yaml_reads_back_what_it_writes():
    shared = [1, 2]
    content = {"z": shared, "a": shared, "text": "no", "key": {"on": None}, "ä": 1e-7, "long": "x " * 200}
    assert parse_yaml(dump_yaml(content), "here") == content
