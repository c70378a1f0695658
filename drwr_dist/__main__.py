"""`python -m drwr_dist`: the list of verbs."""

VERBS = {
    "shards": "import, inspect, verify or stream datasets",
    "train": "train a network on the shards, then evaluate it",
    "evaluate": "measure a trained run on a split",
    "predict": "turn images into point clouds with a trained run",
    "export": "write a trained network as ONNX or torch.export",
    "tune": "sweep over categories and hyperparameters, and write down the best configurations",
    "bench": "time the loader and the steps of a training on this machine, and say what to change",
    "launch": "check a cluster before it is used",
}

print("usage: python -m drwr_dist.VERB key=value …   (each verb has --help; config=FILE brings keys from a file)\n")
for verb, summary in VERBS.items():
    print(f"  python -m drwr_dist.{verb.ljust(8)}  {summary}")
