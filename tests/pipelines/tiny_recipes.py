"""The recipes of both stages of a pipeline that is trained in seconds."""

TRAINING = {"steps": 6, "batch_size": 16, "validate_every": 3, "save_every": 3, "validation_images": 8}
RECIPES = {
    "tokenizer.yaml": {
        "kind": "tokenizer",
        "output": "elsewhere",
        "data": {
            "source": {"kind": "shapes", "train": 64, "validation": 16, "test": 24},
            "preprocess": {"size": 32, "mode": "RGB"},
        },
        "model": {
            "backbone": {"kind": "conv", "widths": [8, 16], "residual_blocks": 1, "residual_width": 8},
            "bottleneck": {"kind": "vq", "num_codes": 48, "dim": 8},
            "likelihood": {"kind": "normal"},
        },
        "objective": {"weights": {"nll": 1, "commitment": 0.25}},
        "training": TRAINING,
    },
    "prior.yaml": {
        "kind": "prior",
        "output": "elsewhere",
        "tokens": "elsewhere",
        "condition": "label",
        "transformer": {"dim": 16, "depth": 1, "heads": 1, "head_dim": 16},
        "training": TRAINING,
    },
}
