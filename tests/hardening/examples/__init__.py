"""One valid call for every public name, of random small sizes; the fuzz takes it and spoils one argument.

A public name that is new joins by a function of `Sizes` of its name, in the file of its package, or by a line of
`EXEMPT` with the reason why not.
"""

from collections.abc import Callable
from importlib import import_module

from tests.hardening.examples.sizes import Call as Call
from tests.hardening.examples.sizes import Sizes as Sizes

PACKAGES = {
    package: import_module(f"transmamba.{package}") for package in ("ops", "nn", "models", "distill", "transfer")
}
EXAMPLES: dict[str, Callable[[Sizes], Call]] = {
    f"{package}.{name}": function
    for package, module in PACKAGES.items()
    for name, function in vars(import_module(f"tests.hardening.examples.{package}")).items()
    if callable(function) and function.__module__.endswith(f"examples.{package}") and hasattr(module, name)
}
_records = "a record of its arguments"
_files = "reads a checkpoint: test_checkpoints.py"
EXEMPT = {
    **dict.fromkeys(["ops.ScanOrder", "ops.TrapezoidState", "nn.AttentionCache", "nn.CrossCache",
                     "nn.MixerCache", "nn.ScanParameters",
                     "models.Features", "models.TextFeatures", "models.VideoFeatures",
                     "models.Backbone", "models.Pretrained", "models.BlockStack", "models.VMamba",
                     "distill.AdaptiveDetails", "distill.DirectionalDetails", "distill.MatchTable",
                     "transfer.Architecture",
                     "transfer.Family", "transfer.SubcloneReport", "transfer.FitReport",
                     "transfer.Sensitivity",
                     "distill.SparseLogits", "distill.Layout", "distill.Sides", "distill.Tokens",
                     "models.FeatureMethods"], _records),
    **dict.fromkeys(["models.from_official", "models.to_official", "models.from_hf", "transfer.open_safetensors"],
                    _files),
    **dict.fromkeys(["transfer.magnitude_importance", "transfer.first_importance", "transfer.random_importance"],
                    "scores for subclone, which checks them"),
    "transfer.Translated": "made by transfer.translate",
    "distill.FeatureStore": "reads files: tests/distill/test_store.py",
    "distill.ends_process": "ends the process: tests/distill/test_processes.py",
}  # fmt: skip
