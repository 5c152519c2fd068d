"""Recipes with a value that no training can use."""

from collections.abc import Iterator

from tests.benchmarks.hostile_inputs.case import Case

NUMBERS = ("nan", ".nan", ".inf", "-.inf", "-1", "1e400", "99999999999999999999999", "many", "[]", "{}", "null", "true")
INTEGERS = (
    "training.steps",
    "training.batch_size",
    "training.validate_every",
    "training.optimizer.warmup",
    "model.bottleneck.num_codes",
    "model.bottleneck.dim",
    "data.preprocess.size",
    "data.source.train",
)
REALS = ("training.optimizer.learning_rate", "training.optimizer.eps", "training.optimizer.weight_decay")
OVERRIDES = (
    "seed=99999999999999999999999",
    "seed=-1",
    "seed=1.5",
    "training.optimizer.betas=[1.5,0.9]",
    "training.optimizer.betas=[.nan,0.9]",
    "training.optimizer.betas=[0.9]",
    "training.optimizer.betas=[-1,0.9]",
    "training.ema_decay=1",
    "training.precision=no",
    "training.precision=fp16",
    "training.trackers=[magic]",
    "training.trackers=tensorboard",
    "training.batch_size=1000000000000",
    "training.batch_size=7 training.gradient_accumulation_steps=2",
    "data.preprocess.size=1000000",
    "data.preprocess.size=1000000 model.image_size=1000000",
    "data.preprocess.size=1",
    "data.preprocess.size=30",
    "data.preprocess.mode=CMYK",
    "data.preprocess.mode=L model.channels=3",
    "data.source.train=0",
    "data.source.kind=cake",
    "data.source={kind: torchvision, name: Cake}",
    "data.source={kind: torchvision, name: FakeData, arguments: {size: -5}}",
    "data.source={kind: torchvision, name: FakeData, arguments: {size: many}}",
    "data.source={kind: torchvision, name: FakeData, arguments: {cake: 1}}",
    "data.source={kind: torchvision, name: MNIST, root: /nowhere, download: false}",
    "data.source={kind: torchvision, name: ImageNet, root: .}",
    "data.source={kind: huggingface, path: ./nowhere}",
    "data.source={kind: huggingface, path: imagefolder, data_dir: nowhere}",
    "data.source={kind: huggingface, path: parquet, data_files: nowhere.parquet}",
    "data.source={kind: huggingface, path: parquet, data_files: tokenizer.yaml}",
    "data.source={kind: huggingface, path: imagefolder, data_dir: images, label: cake}",
    "data.source={kind: huggingface, path: imagefolder, data_dir: images, arguments: {streaming: true}}",
    "data.validation_fraction=1",
    "data.workers=-1",
    "data.workers=100000000",
    "data.max_pixels=0",
    "model.bottleneck.num_codes=1000000000000",
    "model.bottleneck.num_codes=9223372036854775807",
    "model.bottleneck.dim=1000000000000",
    "model.bottleneck.kind=magic",
    "model.bottleneck={kind: fsq, levels: []}",
    "model.bottleneck={kind: fsq, levels: [1]}",
    "model.bottleneck={kind: fsq, levels: [1000000000, 1000000000, 1000000000]}",
    "model.bottleneck={kind: fsq, levels: [0, -3]}",
    "model.bottleneck={kind: lfq, dim: 0}",
    "model.bottleneck={kind: lfq, dim: 64}",
    "model.bottleneck={kind: lfq, temperature: 0}",
    "model.bottleneck={kind: gaussian, dim: 1000000000000}",
    "model.bottleneck.num_quantizers=0",
    "model.bottleneck.num_quantizers=1000000000",
    "model.backbone.widths=[]",
    "model.backbone.widths=[0]",
    "model.backbone.widths=[1000000000]",
    "model.backbone.widths=[4,4,4,4,4,4,4,4,4]",
    "model.backbone.residual_blocks=1000000000",
    "model.backbone.residual_width=1000000000000",
    "model.likelihood={kind: magic}",
    "model.likelihood.scale=0",
    "model.likelihood.scale=1e-300",
    "objective.weights={nll: 1}",
    "objective.weights={nll: -1, commitment: 1}",
    "objective.weights={nll: .nan, commitment: 1}",
    "objective.weights={}",
    "objective.draws=0",
    "objective.draws=2",
    "objective.draws=1000000000000",
    "objective.weights={nll: 1, commitment: 1, cake: 1}",
    "model.bottlneck.num_codes=3",
    "output=",
    "output=[]",
    "output=null",
    "noequals",
    "=3",
    "a..b=3",
    "training=[1",
    "training.steps.deep=1",
    "training.steps=&a 3",
    "training=*a",
)
PRIOR_OVERRIDES = (
    "transformer.depth=1000000000",
    "transformer.dim=1000000000",
    "transformer.heads=1000000000",
    "transformer.head_dim=1000000000",
    "transformer.ff_mult=1e300",
    "transformer.ff_mult=.inf",
    "transformer.dropout=1",
    "transformer.positions=magic",
    "transformer={positions: rotary, head_dim: 3}",
    "condition=magic",
    "condition_dropout=1.5",
    "tokens=nowhere",
    "tokens=tokenizer.yaml",
    "tokens=.",
    "tokens=null",
    "training.batch_size=1000000000000",
)
PIPELINE_OVERRIDES = (
    "encode.splits=[train]",
    "encode.splits=[]",
    "encode.splits=[cake]",
    "encode.batch_size=0",
    "sample.options.temperature=0",
    "sample.options.temperature=1e-40",
    "sample.options.guidance_scale=1e300",
    "sample.options.top_p=1e-320",
    "sample.options.top_p=2",
    "sample.options.top_k=0",
    "sample.options.min_p=.nan",
    "sample.options={do_sample: false, top_k: 3}",
    "prior.condition_dropout=-1",
)


def values() -> Iterator[Case]:
    for key in (*INTEGERS, *REALS):
        for value in NUMBERS:
            yield Case("value", f"{key}={value}", ["train", "tokenizer.yaml", f"{key}={value}"])
    for text in OVERRIDES:
        yield Case("value", text, ["train", "tokenizer.yaml", *([text] if "{" in text else text.split(" "))])
    for text in PRIOR_OVERRIDES:
        tokens = [] if text.startswith("tokens") else ["tokens=done/tokens"]
        yield Case("value", f"prior {text}", ["train", "prior.yaml", *tokens, text])
    for text in PIPELINE_OVERRIDES:
        yield Case("value", f"pipeline {text}", ["run", "pipeline.yaml", "output=out", text])
