from datasets.build import build_dataloader  # noqa: F401
