"""Files that are no recipe."""

from collections.abc import Iterator
from functools import partial

from tests.benchmarks.hostile_inputs.case import Case
from tests.benchmarks.hostile_inputs.fixture import PIPELINE, TOKENIZER, write

DOCUMENTS = {
    "empty": "",
    "a list": "- a\n- b\n",
    "a text": "just words",
    "null": "null",
    "unfinished": "a: [1",
    "binary": b"\xff\xfe\x00\x01" * 100,
    "utf-16": "kind: tokenizer".encode("utf-16"),
    "null byte": "kind: tokenizer\x00",
    "recursive anchor": "kind: tokenizer\nmodel: &a {x: *a}",
    "bomb of lists": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)),
    "bomb of mappings": "a: &a {x: 1}\n" + "".join(f"b{i}: &b{i} {{<<: *a, y: *a}}\n" for i in range(2000)),
    "3,000 nested lists": "kind: " + "[" * 3000 + "]" * 3000,
    "3,000 nested mappings": "kind: " + "{a: " * 3000 + "1" + "}" * 3000,
    "5,000 digits": "kind: tokenizer\nseed: " + "9" * 5000,
    "5,000 hexadecimal digits": "kind: tokenizer\nseed: 0x" + "f" * 5000,
    "duplicate keys": TOKENIZER + "seed: 1\nseed: 2\n",
    "a megabyte": "a: " + "x" * 2**20,
    "a key that is true": TOKENIZER + "on: 1\n",
    "a key that is a list": TOKENIZER + "? [a]\n: 1\n",
    "python object": TOKENIZER + "seed: !!python/object/apply:os.getpid []\n",
    "a wrong tag": TOKENIZER + "seed: !!int many\n",
    "another kind": "kind: cake\n",
    "no kind": "output: out\n",
    "kind is a list": "kind: [tokenizer]\n",
    "only the kind": "kind: tokenizer\n",
    "blocks are texts": "kind: tokenizer\noutput: out\ndata: x\nmodel: x\nobjective: x\ntraining: x\n",
    "blocks are null": "kind: tokenizer\noutput: out\ndata:\nmodel:\nobjective:\ntraining:\n",
    "blocks are lists": "kind: tokenizer\noutput: out\ndata: []\nmodel: []\nobjective: []\ntraining: []\n",
}


def recipe_files() -> Iterator[Case]:
    for name, content in DOCUMENTS.items():
        yield Case("recipe", name, ["train", "hostile.yaml"], partial(write, "hostile.yaml", content))
    for name in ("nowhere.yaml", ".", "/dev/zero", "/dev/null", "x" * 300 + ".yaml", "tokenizer.yaml/below", ""):
        yield Case("recipe", f"path {name[:20]!r}", ["train", name])
    for part in ("tokenizer", "prior"):
        for name in ("nowhere.yaml", ".", "x" * 300):
            text = PIPELINE.replace("done", "out").replace(f"{part}.yaml", name)
            yield Case("recipe", f"{part}: {name[:20]}", ["run", "hostile.yaml"], partial(write, "hostile.yaml", text))
