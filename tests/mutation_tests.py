"""The tests of each file that `tests.mutations` changes, most specific first: it stops at the first failure."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SCAN = "ops/scan/scan ops/scan/scan_golden"
# all signatures, with their defaults
EVERY = " contracts/snapshot"
LOSSES = "distill/adaptive distill/directional distill/baselines"
# a/b stands for tests/a/test_b.py; a file that is not named here has a test of its own name
TESTS = {
    "distill/checks": f"distill/checks {LOSSES}",
    "distill/contrastive": "distill/contrastive distill/gather",
    "distill/fused": "distill/fused distill/directional",
    "distill/padded_linear": "distill/adaptive distill/calibrate",
    "distill/shards": "distill/docs distill/store",
    "distill/similarity": "distill/adaptive distill/padding",
    "distill/slopes": "distill/hidden",
    "ops/conv/backends": "ops/conv/conv",
    "ops/conv/__init__": "ops/conv/conv",
    "ops/conv/inputs": "ops/conv/conv",
    "ops/conv/reference": "ops/conv/conv",
    "ops/cross/__init__": "ops/cross/cross",
    "ops/cross/backends": "ops/cross/cross",
    "ops/cross/chunked": "ops/cross/cross",
    "ops/cross/inputs": "ops/cross/cross",
    "ops/cross/reference": "ops/cross/cross contracts/export",
    "ops/custom_op": "ops/cross/cross ops/conv/conv ops/scan/scan",
    "ops/flops": "contracts/reports ops/cross/cross models/sizes",
    "ops/plain": "ops/cross/cross contracts/export",
    "ops/resize": "models/sizes transfer/resize models/vit transfer/teachers/image_files",
    "ops/scan/__init__": SCAN,
    "ops/scan/backends": SCAN,
    "ops/scan/chunked": SCAN,
    "ops/scan/inputs": f"{SCAN} nn/directions",
    "ops/scan/nvrtc/__init__": "ops/scan/nvrtc/launch ops/scan/nvrtc/emulated",
    "ops/scan/nvrtc/arguments": "ops/scan/nvrtc/launch ops/scan/nvrtc/emulated",
    "ops/scan/nvrtc/compiler": "ops/scan/nvrtc/launch",
    "ops/scan/nvrtc/driver": "ops/scan/nvrtc/launch",
    "ops/scan/nvrtc/variants": "ops/scan/nvrtc/launch ops/scan/nvrtc/emulated",
    "ops/scan/parts": "ops/scan/nvrtc/emulated",
    "ops/scan/reference": SCAN,
    "ops/shapes": f"ops/cross/cross ops/conv/conv {SCAN}",
    "transfer/attention_weights": "transfer/ssm_start transfer/ssm_sources transfer/pairs",
    "transfer/axes": "transfer/importance transfer/inheritance transfer/bad_input transfer/students"
    " transfer/ssm_sources",
    "transfer/counterparts": "transfer/students transfer/survey transfer/pairs",
    "transfer/differences": "transfer/survey transfer/students transfer/pairs",
    "transfer/importance": "transfer/importance transfer/importance_runs",
    "transfer/inheritance": "transfer/inheritance transfer/bad_input transfer/students transfer/survey"
    " transfer/ssm_start",
    "transfer/linear_attention": "transfer/ssm_start transfer/ssm_sources",
    "transfer/plan": "transfer/bad_input transfer/inheritance transfer/students",
    "transfer/refusals": "transfer/bad_input transfer/inheritance transfer/sharded",
    "transfer/report": "transfer/inheritance transfer/students",
    "transfer/resize": "transfer/resize transfer/students",
    "transfer/select": "transfer/inheritance transfer/importance transfer/bad_input transfer/students",
    "transfer/source": "transfer/bad_input transfer/streaming transfer/inheritance",
    "transfer/ssm_start": "transfer/ssm_start transfer/ssm_sources transfer/pairs",
    "transfer/student": "transfer/students transfer/inheritance transfer/survey transfer/pairs",
    "transfer/students": "transfer/students transfer/ssm_sources transfer/pairs transfer/survey",
    "transfer/tensor_checks": "transfer/bad_input transfer/streaming transfer/sharded",
    "transfer/write": "transfer/inheritance transfer/bad_input transfer/resize transfer/students",
}
CLOSED_FORM = {
    "fit_report": "layerwise",
    "layer_fit": "layerwise teacher_forced",
    "least_squares": "least_squares layerwise",
    "lockstep": "layerwise",
    "spread": "layerwise projected",
    "streams": "streams layerwise projected",
}
TEACHERS = {
    "__init__": "translate ../students own defaults",
    "architecture": "translate ../students ../bad_input vit own defaults",
    "beit": "beit image_towers image_files defaults",
    "bert": "bert translate defaults",
    "bert_kin": "bert_kin ../survey defaults",
    "checkpoint": "../streaming encoder_files image_files ../students defaults",
    "clip_vision": "clip_vision image_towers image_files ../survey defaults",
    "decoder": "decoder llama gemma language_parts ../survey defaults",
    "dino": "dino image_survey defaults",
    "encoders": "bert bert_kin rotary_encoders ../survey encoder_files defaults",
    "facts": "llama ../survey ../pairs defaults",
    "family": "translate ../../architecture defaults",
    "gemma": "gemma ../survey defaults",
    "gpt": "gpt translate ../survey defaults",
    "images": "vit image_towers image_survey dino image_files defaults",
    "images_refused": "image_survey defaults",
    "layer_norm": "layer_norm ../survey language_parts defaults",
    "llama": "llama language_parts ../survey defaults",
    "mamba": "../ssm_sources defaults",
    "modules": "translate text_towers image_towers ../students timm defaults",
    "opt": "opt ../survey defaults",
    "own": "own ../pairs defaults",
    "rotary_encoders": "rotary_encoders encoder_files ../survey defaults",
    "seq2seq": "seq2seq ../survey defaults",
    "terms": "terms translate opt defaults",
    "text_towers": "text_towers clip_vision ../survey defaults",
    "translated": "translate ../students ../survey rotary_encoders llama image_towers defaults",
    "unsupported": "../survey refused_encoders defaults",
    "vit": "vit translate ../students image_files image_towers defaults",
    "whisper": "whisper ../survey defaults",
}
for folder, table in (("transfer/closed_form", CLOSED_FORM), ("transfer/teachers", TEACHERS)):
    TESTS |= {
        f"{folder}/{name}": " ".join(f"{folder}/{test}" for test in tests.split()) for name, tests in table.items()
    }


def tests_of(path: Path) -> list[str]:
    """List the test files of a source file, relative to the repository, most specific first.

    Raises:
        FileNotFoundError: A file of the list does not exist.
    """
    name = str(path.relative_to(ROOT / "transmamba").with_suffix(""))
    tests = [ROOT / "tests" / test for test in (TESTS.get(name, name) + EVERY).split()]
    files = [test.with_name(f"test_{test.name}.py").resolve() for test in tests]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"no tests for {name}: there is no {file}; name them in tests/mutation_tests.py")
    return [str(file.relative_to(ROOT)) for file in files]
