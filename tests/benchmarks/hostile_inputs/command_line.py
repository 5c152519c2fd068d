"""Arguments and options that no command can use."""

from collections.abc import Iterator

from tests.benchmarks.hostile_inputs.case import Case

SAMPLE_OPTIONS = (
    "-n=0",
    "-n=-1",
    "-n=3000000000",
    "-n=many",
    "-n=99999999999999999999999",
    "--seed=-1",
    "--seed=99999999999999999999999",
    "--seed=1.5",
    "--temperature=0",
    "--temperature=nan",
    "--temperature=inf",
    "--temperature=1e-40",
    "--temperature=-1",
    "--top-k=0",
    "--top-k=-1",
    "--top-k=99999999999999999999999",
    "--top-p=0",
    "--top-p=2",
    "--top-p=nan",
    "--top-p=1e-320",
    "--min-p=nan",
    "--min-p=2",
    "--guidance-scale=1e300",
    "--guidance-scale=nan",
    "--guidance-scale=-inf",
    "--label=cake",
    "--label=99",
    "--label=-1",
    "--label=",
    "--batch-size=0",
    "--batch-size=99999999999999999999999",
    "--cake",
)
USABLE = {("train", "tokenizer.yaml"), ("inspect", "done/samples"), ("inspect", ".")}
OTHERS = (
    "dance",
    "encode done/tokenizer -o out --shards 0",
    "encode done/tokenizer -o out --shards 99999999999",
    "encode done/tokenizer -o out --split cake",
    "encode done/tokenizer -o out --data nowhere",
    "encode done/tokenizer -o out --data prior.yaml",
    "encode done/tokenizer -o out --data empty",
    "decode done/tokens -o out --split cake",
    "decode done/tokens -o out --max-images 0",
    "decode done/tokens -o out --tokenizer done/prior",
    "reconstruct done/tokenizer -o out --split cake",
    "reconstruct done/tokenizer -o out -n 1000000000",
    "inspect done/tokens --verify 0",
    "inspect done/tokens --split cake",
    "inspect done/tokens -o images",
    "inspect done/tokens -o a.jpg",
    "inspect done/tokens -o a",
    "inspect done/tokens -o tokenizer.yaml/a.png",
    "schema cake",
)


def command_line() -> Iterator[Case]:
    sample = ["sample", "done", "-o", "out"]
    for option in SAMPLE_OPTIONS:
        yield Case("command line", f"sample {option}", [*sample, option.replace("-n=", "--num-images=")])
    yield Case("command line", "sample --greedy --top-k 3", [*sample, "--greedy", "--top-k", "3"])
    for command in ("encode", "decode", "sample", "reconstruct", "inspect", "train", "run"):
        output = [] if command in ("inspect", "train", "run") else ["-o", "out"]
        for folder in ("nowhere", ".", "tokenizer.yaml", "images", "x" * 300, "done/samples"):
            if (command, folder) not in USABLE:
                yield Case("command line", f"{command} {folder[:20]}", [command, folder, *output])
        yield Case("command line", f"{command} alone", [command])
    for text in OTHERS:
        yield Case("command line", text, text.split())
