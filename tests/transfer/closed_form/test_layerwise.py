import copy
from functools import partial
from pickle import UnpicklingError

import pytest
import torch
from torch import nn

from transmamba import transfer
from transmamba.models import (
    MambaEncoder,
    MambaLM,
    TransformerEncoder,
    VisionMamba,
    ViT,
    replace_mixers,
)
from transmamba.models.vision_mamba import SNAKES
from transmamba.nn import Attention, Mamba2Mixer, Mamba3Mixer, MambaMixer, TransformerBlock
from transmamba.transfer import LayerFit, LeastSquares, fit_layers

ATTENTION = partial(Attention, heads=2, causal=True, rope={"rope_theta": 1e4})
IMAGE = {"img_size": 8, "patch_size": 2, "dim": 12, "num_classes": 3}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def perturb(model, size=0.3):
    for parameter in model.parameters():
        parameter.data += size * torch.randn_like(parameter)
    return model.eval()


def language_model(depth=3, mixer=ATTENTION, dim=12, **options):
    return perturb(MambaLM(16, dim, depth=depth, mixer=mixer, d_intermediate=20, **options))


def texts(count=4, rows=8, length=24):
    return list(torch.randint(16, (count, rows, length)).unbind())


def error(student, teacher, batches):
    with torch.no_grad():
        pairs = [(student.forward_features(b).layers[-1], teacher.forward_features(b).layers[-1]) for b in batches]
    return float(sum((s - t).square().sum() for s, t in pairs) / sum(t.square().sum() for _, t in pairs))


def quiet(*arguments, **options):
    return fit_layers(*arguments, progress=False, **options)


def test_one_layer_is_the_ridge_regression_of_what_is_missing():
    teacher = language_model()
    student = replace_mixers(teacher, {1: MambaMixer}).eval()
    batches = texts()
    row = quiet(teacher, student, batches, layers=[1], ridge=0.01, products=torch.float64).rows[0]
    sums = LeastSquares(24, 12)
    found = []
    student.blocks[1].mixer.out_proj.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        for ids in batches:
            found.clear()
            student(ids)
            stream = teacher.forward_features(ids).layers[0]
            # below layer 1 both streams are the same, so the attention itself is missing
            sums.update(found[0], teacher.blocks[1].mixer(teacher.blocks[1].norm1(stream)))
    wanted = sums.solve(0.01)
    torch.testing.assert_close(student.blocks[1].mixer.out_proj.weight.double(), wanted.weight, atol=1e-5, rtol=1e-4)
    assert row.tokens == 4 * 8 * 24 and row.r2 == pytest.approx(sums.r2(wanted.weight), abs=1e-5)
    after = error_of(student, teacher, batches, 1)
    assert (row.stream_error, row.token_error) == pytest.approx(after, rel=1e-4)


def error_of(student, teacher, batches, layer):
    ours, theirs = (
        torch.cat([m.forward_features(b).layers[layer].detach().double().flatten(0, 1) for b in batches])
        for m in (student, teacher)
    )
    errors = (ours - theirs).square().sum(-1)
    spread = (theirs - theirs.mean(0)).square().sum()
    return float(errors.sum() / spread), float((errors / theirs.square().sum(-1)).mean())


@pytest.mark.parametrize("target", ["stream", "block", "own"])
def test_a_student_that_can_be_the_teacher_becomes_it(target):
    teacher = language_model()
    student = language_model()
    student.load_state_dict(teacher.state_dict())
    for block in student.blocks:
        nn.init.normal_(block.mixer.proj.weight)
        nn.init.normal_(block.mixer.proj.bias)
        nn.init.normal_(block.mlp.fc2.weight)
    # "block" leaves nothing to the MLP's matrix, so it stays the teacher's where the mixer aims at it
    if target == "block":
        for ours, theirs in zip(student.blocks, teacher.blocks, strict=True):
            ours.mlp.load_state_dict(theirs.mlp.state_dict())
            nn.init.zeros_(ours.mlp.fc2.weight)
    report = quiet(teacher, student, texts(), target=target, mlp=True, ridge=1e-9, products=torch.float64)
    assert [row.mlp_r2 is not None for row in report.rows] == [True] * 3
    if target != "block":
        assert error(student, teacher, texts()) < 1e-6
        assert all(row.r2 > 0.999 and row.mlp_r2 > 0.999 for row in report.rows)


def test_the_stream_is_followed_although_lower_layers_are_wrong():
    teacher = language_model(depth=4)
    errors = {}
    for target in ("stream", "own"):
        torch.manual_seed(1)
        student = replace_mixers(teacher, dict.fromkeys(range(4), MambaMixer))
        quiet(teacher, student, texts(), target=target)
        errors[target] = error(student, teacher, texts())
    assert errors["stream"] < errors["own"]


@pytest.mark.parametrize(
    "mixer",
    [
        partial(MambaMixer, d_state=8),
        partial(Mamba2Mixer, d_state=8, head_dim=6),
        partial(Mamba3Mixer, d_state=8, head_dim=6),
        ATTENTION,
    ],
)
def test_any_mixer_gets_better(mixer):
    teacher = language_model(depth=2)
    student = replace_mixers(teacher, {0: mixer, 1: mixer})
    before = error(student.eval(), teacher, texts())
    quiet(teacher, student, texts())
    assert error(student, teacher, texts()) < 0.8 * before


def test_streams_kept_or_not_and_any_mode_give_the_same_student():
    teacher = language_model()
    states = []
    for keep in (True, False):
        torch.manual_seed(1)
        student = replace_mixers(teacher, {0: MambaMixer, 2: MambaMixer}).train()
        torch.manual_seed(2)
        quiet(teacher, student, texts(), layers=[0, 2], keep_streams=keep)
        assert student.training and not teacher.training
        states.append(student.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_only_the_readouts_of_the_chosen_layers_change():
    teacher = language_model()
    student = replace_mixers(teacher, {0: MambaMixer, 2: MambaMixer})
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    quiet(teacher, student, texts(), layers=[2])
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"blocks.2.mixer.out_proj.weight"}


def test_padding_and_packed_texts_are_respected():
    teacher = language_model(depth=2)
    batches = texts()
    mask = torch.ones(8, 24, dtype=torch.bool)
    mask[:, 20:] = False
    cut, padded = (replace_mixers(teacher, {1: MambaMixer}) for _ in range(2))
    padded.load_state_dict(cut.state_dict())
    quiet(teacher, cut, [ids[:, :20] for ids in batches])
    report = quiet(teacher, padded, [{"ids": ids, "mask": mask} for ids in batches])
    assert report.rows[0].tokens == 4 * 8 * 20
    for one, other in zip(cut.parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    quiet(teacher, padded, [(ids, None, torch.arange(24).expand(8, 24) // 12) for ids in batches])


def test_fewer_layers_follow_the_map():
    teacher, student = language_model(depth=4), language_model(depth=2, mixer=MambaMixer)
    before = error(student, teacher, texts())
    report = quiet(teacher, student, texts(), layer_map={0: 1, 1: 3}, mlp=True)
    assert [row.teacher_layer for row in report.rows] == [1, 3]
    assert error(student, teacher, texts()) < 0.75 * before
    with pytest.raises(ValueError, match=r"would follow teacher layers \[3, 1\] of 4 .*from the bottom to the top"):
        quiet(teacher, student, texts(), layer_map={0: 3, 1: 1})
    with pytest.raises(ValueError, match=r"would follow teacher layers \[0, 1, -1, -1\] of 2 \(-1: none\): expected"):
        quiet(student, teacher, texts(), layer_map={0: 0, 1: 1})


@pytest.mark.parametrize("keep_streams", [True, False])
def test_a_deeper_student_takes_a_teacher_layer_in_equal_parts(keep_streams):
    """The second layer's stream is to come out half way to the teacher's, and so on; mixer and MLP as parts of it."""
    teacher, student = language_model(depth=2), language_model(depth=4, mixer=MambaMixer)
    batches = texts()
    fit = transfer.LayerFit(teacher, student, batches, keep_streams=keep_streams)
    with torch.no_grad():
        streams = [teacher.embedding(batches[0]), *teacher.forward_features(batches[0]).layers]
        mixed = [block.mixer(block.norm1(stream)) for block, stream in zip(teacher.blocks, streams[:-1], strict=True)]
    for layer in range(4):
        block, half = layer // 2, layer % 2
        before, after = streams[block], streams[block + 1]
        place, target = next(iter(fit.pairs()))
        own = before + half * (after - before) / 2
        torch.testing.assert_close(target, own + mixed[block] / 2 - place.tokens, atol=1e-5, rtol=1e-4)
        fit.solve(mlp=True)
        fit.advance()


def test_a_deeper_student_comes_nearer():
    teacher, student = language_model(depth=2), language_model(depth=5, mixer=MambaMixer)
    before = error(student, teacher, texts())
    report = quiet(teacher, student, texts(), mlp=True)
    assert [row.teacher_layer for row in report.rows] == [0, 0, 1, 1, 1]
    assert error(student, teacher, texts()) < 0.6 * before


def test_two_equal_layers_of_half_the_size_are_the_teachers_one():
    """Where nothing below changes the branch, each half of it is solved exactly."""

    class Constant(nn.Module):  # reads nothing of the stream
        def __init__(self, dim):
            super().__init__()
            self.out_proj = nn.Linear(dim, dim, bias=False)

        def forward(self, x, *context, **options):
            fixed = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0))
            return self.out_proj(fixed.expand_as(x))

    teacher, student = (perturb(MambaLM(16, 12, depth=depth, mixer=Constant)) for depth in (1, 2))
    student.embedding.load_state_dict(teacher.embedding.state_dict())
    quiet(teacher, student, texts(), ridge=1e-9, products=torch.float64)
    for block in student.blocks:
        wanted = teacher.blocks[0].mixer.out_proj.weight / 2
        torch.testing.assert_close(block.mixer.out_proj.weight, wanted, atol=1e-4, rtol=1e-3)


def test_a_narrower_student_follows_a_projection():
    teacher, student = language_model(dim=16), language_model(dim=8, mixer=MambaMixer)
    with pytest.raises(ValueError, match=r"is \(8, 24, 16\), the student's \(8, 24, 8\).*projection=principal_axes"):
        quiet(teacher, student, texts())
    axes = transfer.principal_axes(teacher, texts(), 8)
    torch.testing.assert_close(axes @ axes.T, torch.eye(8), atol=1e-5, rtol=0)
    report = quiet(teacher, student, texts(), projection=axes)
    assert all(row.mlp_r2 is not None for row in report.rows)
    with torch.no_grad():
        ours = student.forward_features(texts()[0]).layers[-1]
    assert ours.shape == (8, 24, 8) and report.rows[-1].stream_error < 1


def test_principal_axes_are_those_of_the_streams():
    teacher = language_model(depth=2)
    batches = texts()
    layers = [
        torch.cat([teacher.forward_features(b).layers[i].detach().flatten(0, 1) for b in batches]).double()
        for i in range(2)
    ]
    centred = [x - x.mean(0) for x in layers]
    spread = sum(x.T @ x / x.square().sum() for x in centred)
    wanted = torch.linalg.eigh(spread)[1].T.flip(0)[:5]
    axes = transfer.principal_axes(teacher, batches, 5).double()
    torch.testing.assert_close((axes @ wanted.T).abs(), torch.eye(5, dtype=torch.double), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="dim must lie between 1 and the stream's width 12, got 13"):
        transfer.principal_axes(teacher, batches, 13)


def test_images_and_tokens_that_the_student_lacks():
    teacher = perturb(ViT(**IMAGE, depth=2, heads=2))
    hybrid = replace_mixers(teacher, {1: partial(MambaMixer, directions=2)})
    images = list(torch.randn(3, 8, 3, 8, 8).unbind())
    row = quiet(teacher, hybrid, images, layers=[1]).rows[0]
    assert row.tokens == 3 * 8 * 17
    student = VisionMamba(**IMAGE, depth=2)
    with pytest.raises(ValueError, match=r"tokens=lambda x: x\[:, 1:\]"):
        quiet(teacher, student, images, tokens=lambda x: x)
    by_hand = quiet(teacher, copy.deepcopy(student), images, tokens=lambda x: x[:, 1:])
    report = quiet(teacher, student, images)
    assert report.rows[0].tokens == 3 * 8 * 16
    assert report.rows == by_hand.rows and report.left_out == (0,)


@pytest.mark.parametrize("names", [("forward", "backward"), SNAKES])
@pytest.mark.parametrize("place", ["ends", "middle", "last"])
@pytest.mark.parametrize("mixer", [Mamba2Mixer, Mamba3Mixer])
def test_an_image_model_of_several_directions(mixer, names, place):
    teacher = perturb(ViT(**IMAGE, depth=2, heads=2, registers=1))
    mixer = partial(mixer, d_state=4, head_dim=6, directions=len(names))
    student = replace_mixers(teacher, {0: mixer, 1: mixer}, orders=names, prefix_scan=place)
    images = list(torch.randn(6, 8, 3, 8, 8).unbind())
    before = error(student, teacher, images[4:])
    report = quiet(teacher, student, images[:4])
    assert error(student, teacher, images[4:]) < 0.8 * before
    assert all(row.r2 < 1 and row.tokens == 4 * 8 * 18 for row in report.rows)


def test_several_directions_are_the_ridge_regression_of_their_sum():
    teacher = perturb(ViT(**IMAGE, depth=1, heads=2))
    mixer = partial(Mamba2Mixer, d_state=4, head_dim=6, directions=2)
    student = replace_mixers(teacher, {0: mixer}, orders=("snake", "snake_reverse")).eval()
    images = list(torch.randn(4, 8, 3, 8, 8).unbind())
    report = quiet(teacher, student, images, ridge=0.01, products=torch.float64)
    sums, found = LeastSquares(24, 12), []
    student.blocks[0].mixer.out_proj.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        for x in images:
            found.clear()
            student(x)
            tokens = teacher._embed(x)
            sums.update(found[0], teacher.blocks[0].attn(teacher.blocks[0].norm1(tokens)))
    wanted = sums.solve(0.01)
    torch.testing.assert_close(student.blocks[0].mixer.out_proj.weight.double(), wanted.weight, atol=1e-5, rtol=1e-4)
    assert report.rows[0].r2 == pytest.approx(sums.r2(wanted.weight), abs=1e-5)


def test_text_encoders_with_norms_after_the_residual():
    teacher = perturb(TransformerEncoder(16, 12, depth=2, mixer=partial(Attention, heads=2), max_length=24))
    student = MambaEncoder(16, 12, depth=2, max_length=24)
    mask = torch.arange(24).expand(8, 24) < 20
    report = quiet(teacher, student, [{"ids": ids, "mask": mask} for ids in texts()])
    assert [row.tokens for row in report.rows] == [4 * 8 * 20] * 2
    post = replace_mixers(
        perturb(MambaLM(16, 12, depth=2, mixer=ATTENTION, block=partial(TransformerBlock, placement="post"))),
        {1: MambaMixer},
    )
    with pytest.raises(ValueError, match="normalises after its mixer"):
        quiet(post, post, texts(), layers=[1])
    quiet(post, post, texts(), layers=[1], target="own")


def test_a_token_of_huge_norm_does_not_rule_if_errors_are_relative():
    teacher = language_model(depth=1)
    with torch.no_grad():
        teacher.embedding.weight[0] *= 300
    ids = torch.randint(1, 16, (8, 24))
    ids[:, 0] = 0
    errors = {}
    for weighting in ("equal", "relative"):
        torch.manual_seed(1)
        student = replace_mixers(teacher, {0: MambaMixer})
        errors[weighting] = quiet(teacher, student, [ids], weighting=weighting).rows[0].token_error
    assert errors["relative"] <= errors["equal"]


def test_a_fit_goes_on_where_it_was_stopped(tmp_path):
    teacher, batches = language_model(), texts()
    students = []
    for _ in range(2):
        torch.manual_seed(1)
        students.append(replace_mixers(teacher, dict.fromkeys(range(3), MambaMixer)))
    tmp_path = tmp_path / "new" / "folder"
    whole = quiet(teacher, students[0], batches, checkpoint=tmp_path)
    (tmp_path / "layer_0002.pt").unlink()
    again = quiet(teacher, students[1], batches, checkpoint=tmp_path)
    assert whole == again
    for one, other in zip(*(s.parameters() for s in students), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="was solved with .*'ridge': 0.001.*now asked for is .*'ridge': 0.1"):
        quiet(teacher, students[1], batches, checkpoint=tmp_path, ridge=0.1)
    with pytest.raises(ValueError, match="which the student lacks: wrong folder"):
        quiet(teacher, language_model(), batches, checkpoint=tmp_path)
    torch.save(torch.load(tmp_path / "layer_0000.pt") | {"row": nn.Linear}, tmp_path / "layer_0000.pt")
    with pytest.raises(UnpicklingError, match="Weights only load failed"):
        quiet(teacher, students[1], batches, checkpoint=tmp_path)


def test_the_loop_can_be_opened():
    teacher = language_model(depth=2)
    student = replace_mixers(teacher, {0: MambaMixer, 1: MambaMixer})
    fit = LayerFit(teacher, student, texts())
    for place, target in fit.pairs():
        torch.testing.assert_close(target, teacher.blocks[0].mixer(teacher.blocks[0].norm1(place.tokens)))
    before = fit.solve().r2
    assert fit.solve().r2 == pytest.approx(before)
    assert fit.layer == 0 and len(fit.advance()) == 2 and fit.layer == 1


def test_the_bar_counts_layers_and_leaves_no_line(capsys):
    pytest.importorskip("tqdm")
    teacher = language_model(depth=2)
    fit_layers(teacher, replace_mixers(teacher, {1: MambaMixer}), texts(), layers=[1])
    shown = capsys.readouterr().err
    assert "layers: " in shown and "\n" not in shown


def test_clear_errors():
    teacher = language_model()
    with pytest.raises(ValueError, match="teacher is a Linear without a list `blocks`"):
        quiet(nn.Linear(2, 2), teacher, texts())
    with pytest.raises(ValueError, match=r"layers must be some of 0 to 2, got \[3\]"):
        quiet(teacher, teacher, texts(), layers=[3])
    with pytest.raises(ValueError, match="no batch to fit on"):
        quiet(teacher, teacher, [])
    with pytest.raises(ValueError, match="no batch to fit on"):
        quiet(teacher, teacher, iter([]), keep_streams=False)
    with pytest.raises(ValueError, match="8 tokens for 24 unknowns"):
        quiet(teacher, replace_mixers(teacher, {0: MambaMixer}), [torch.randint(16, (1, 8))])
    odd = nn.Module()
    odd.blocks = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="ran without its first block|not implemented"):
        odd.forward = lambda x: x
        quiet(odd, odd, [torch.zeros(1, 2)])


def test_the_report_is_a_table():
    teacher = language_model(depth=2)
    text = str(quiet(teacher, replace_mixers(teacher, {1: MambaMixer}), texts(), layers=[1]))
    assert text.splitlines()[0].split() == [
        "layer",
        "teacher",
        "tokens",
        "R2",
        "MLP",
        "R2",
        "stream",
        "error",
        "token",
        "error",
    ]
    assert text.splitlines()[1].split()[:3] == ["1", "1", "768"]


def solve_all(teacher, student, batches, folder):
    quiet(teacher, student, batches)


def solve_resumed(teacher, student, batches, folder):
    quiet(teacher, replace_mixers(student, {}), batches, checkpoint=folder)
    quiet(teacher, student, batches, checkpoint=folder)


def solve_each(teacher, student, batches, folder):
    transfer.fit_mixers(teacher, {i: block.mixer for i, block in enumerate(student.blocks)}, batches)


@pytest.mark.parametrize("solve", [solve_all, solve_resumed, solve_each])
def test_a_solution_counts_within_an_autocast_that_has_run_the_student_before(solve, tmp_path):
    teacher, batches = language_model(), texts()
    student, never_run = (replace_mixers(teacher, dict.fromkeys(range(3), MambaMixer)).eval() for _ in range(2))
    never_run.load_state_dict(student.state_dict())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = student(batches[0])
        solve(teacher, student, batches, tmp_path / "first")
        after = student(batches[0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        solve(teacher, never_run, batches, tmp_path / "second")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = never_run(batches[0])
    assert not torch.equal(before, after)
    assert torch.equal(after, expected)
