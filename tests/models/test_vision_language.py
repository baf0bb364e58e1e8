from functools import partial

import pytest
import torch
from torch import nn

from transmamba.models import BackbonePatches, ClipPatches, MambaLM, VisionLanguageMamba, VisionMamba
from transmamba.models import llava_sizes as sizes
from transmamba.models.splice import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from transmamba.nn import Mamba2Mixer, MambaMixer
from transmamba.transfer import init_convolutions, magnitude_importance, subclone

transformers = pytest.importorskip("transformers")
IMG, PAD = IMAGE_TOKEN_INDEX, 0
WORDS, DIM, PATCHES = 23, 12, 6
MIXERS = {"mamba": partial(MambaMixer, d_state=5), "mamba2": partial(Mamba2Mixer, d_state=5, head_dim=4)}
QUERIES = pytest.mark.parametrize("query", ["image", "text"])
# two images, none and one
IDS = torch.tensor([[1, IMG, 2, IMG, 3, 4, 5], [6, 7, 8, 9, 0, 0, 0], [1, IMG, 3, 2, 4, 0, 0]])
MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [True] * 5 + [False] * 2])
LABELS = torch.full_like(IDS, IGNORE_INDEX)
LABELS[0, 5:], LABELS[1, 3], LABELS[2, 3:5] = torch.tensor([4, 5]), 9, torch.tensor([2, 4])


def build(query="image", mixer="mamba", cross_after=(0, 1), awake=True, **options):
    """Build a tiny model; `awake` moves its CrossMamba blocks away from the identity."""
    vision = BackbonePatches(VisionMamba((8, 12), 4, dim=7, depth=1, d_state=3), 7)
    language = MambaLM(WORDS, DIM, depth=3, mixer=MIXERS[mixer], d_intermediate=9)
    model = VisionLanguageMamba(vision, language, cross_after=cross_after, query=query, **options)
    if awake:
        for parameter in model.cross.parameters():
            parameter.data += torch.randn_like(parameter) / 3
    return model.double().eval()


def pictures():
    return [torch.randn(n, 3, 8, 12, dtype=torch.float64) for n in (2, 0, 1)]


@QUERIES
def test_a_sample_does_not_depend_on_its_batch(query):
    model, images = build(query), pictures()
    output = model(IDS, images, MASK, LABELS)
    for sample in range(3):
        length = int(MASK[sample].sum())
        alone = model(IDS[sample : sample + 1, :length], images[sample : sample + 1], None, LABELS[[sample], :length])
        torch.testing.assert_close(output.logits[sample, output.mask[sample]], alone.logits[0])
    assert output.grid == (2, 3) and output.image.sum(1).tolist() == [2 * PATCHES, 0, PATCHES]
    assert output.logits.shape[-1] == WORDS


@QUERIES
def test_images_in_one_tensor_are_those_in_a_list(query):
    """The length is that of a text without padding, whatever the mask."""
    ids = torch.tensor([[1, IMG, 2, 3, 4, 0], [6, 7, IMG, 9, 0, 0]])
    model, images, mask = build(query), torch.randn(2, 1, 3, 8, 12, dtype=torch.float64), ids != 0
    labels = torch.where(torch.arange(6) < 3, IGNORE_INDEX, ids).masked_fill(~mask, IGNORE_INDEX)
    one, several = model(ids, images, mask, labels), model(ids, list(images), mask, labels)
    assert one.logits.shape[1] == 5 + PATCHES and several.logits.shape[1] == 4 + PATCHES
    torch.testing.assert_close(one.logits[:, :-1][several.mask], several.logits[several.mask])
    assert not one.mask[:, -1].any() and torch.equal(one.labels[:, :-1], several.labels)
    for got, expected in zip(model.prefill(ids, images, mask), model.prefill(ids, list(images), mask), strict=True):
        if isinstance(got, torch.Tensor):
            torch.testing.assert_close(got, expected)
    assert torch.equal(*(model.generate(ids, x, 4, mask=mask) for x in (images, list(images))))
    with pytest.raises(ValueError, match="sample 0 has 1 image placeholders .* and 2 images"):
        model(ids, images.repeat(1, 2, 1, 1, 1), mask, labels)
    with pytest.raises(ValueError, match="images has 1 entries for 2 samples"):
        model(ids, images[:1], mask, labels)


def test_without_cross_blocks_it_is_the_language_model_on_spliced_tokens():
    model, images = build(cross_after=()), pictures()
    output = model(IDS, images, MASK)
    alone = model.language(IDS[1:2, :4])[..., :WORDS]
    torch.testing.assert_close(output.logits[1:2, :4], alone)
    torch.testing.assert_close(model.language.head(output.last)[..., :WORDS], output.logits)


@QUERIES
def test_new_cross_blocks_change_nothing(query):
    model, images = build(query, awake=False), pictures()
    expected = model.language.norm(
        model.language.blocks(model.splice(IDS, images, MASK)[0].tokens, None, model.splice(IDS, images, MASK)[0].mask)
    )
    torch.testing.assert_close(model(IDS, images, MASK, LABELS).last, expected)


def test_patches_read_the_question_and_never_the_answer():
    """With Q visual, the patches after the first CrossMamba block move with the prompt alone."""
    model, images = build("image"), pictures()
    before = model(IDS, images, MASK, LABELS)
    answered, asked = IDS.clone(), IDS.clone()
    answered[0, 5:], asked[0, 4] = torch.tensor([11, 12]), 13
    same = model(answered, images, MASK, LABELS).layers[0]
    other = model(asked, images, MASK, LABELS).layers[0]
    patches = before.image
    torch.testing.assert_close(same[patches], before.layers[0][patches])
    moved = (other - before.layers[0]).abs().amax(-1)
    assert bool((moved[0, patches[0]] > 1e-6).all()) and bool((moved[1:][patches[1:]] < 1e-12).all())


def test_text_reads_all_images_of_its_sample():
    model, images = build("text"), pictures()
    before = model(IDS, images, MASK, LABELS).layers[0]
    images[0][1] += 1.0
    output = model(IDS, images, MASK, LABELS)
    moved = (output.layers[0] - before).abs().amax(-1)
    text = output.mask & ~output.image
    assert bool((moved[0, text[0]] > 1e-6).all()) and bool((moved[1:] < 1e-12).all())


@QUERIES
@pytest.mark.parametrize("mixer", MIXERS)
def test_steps_after_a_prefill_give_the_parallel_pass(query, mixer):
    model, images = build(query, mixer), pictures()
    labels = IDS.masked_fill(torch.tensor([[False] * 5 + [True] * 2]).logical_not(), IGNORE_INDEX)
    whole = model(IDS[:1], images[:1], None, labels[:1]).logits[0]
    logits, cache = model.prefill(IDS[:1, :5], images[:1])
    torch.testing.assert_close(logits[0], whole[-3])
    for place, token in enumerate((4, 5)):
        logits, cache = model.step(torch.tensor([token]), cache)
        torch.testing.assert_close(logits[0], whole[place - 2])


@QUERIES
def test_generating_with_a_cache_is_the_greedy_choice_of_full_passes(query):
    model, images, prompt = build(query), pictures()[:1], IDS[:1, :5]
    answer = model.generate(prompt, images, 4)
    ids = torch.cat([prompt, answer], 1)
    output = model(ids, images, None, torch.cat([torch.full_like(prompt, IGNORE_INDEX), answer], 1))
    assert torch.equal(output.logits[output.answers()].argmax(-1), answer[0])


@QUERIES
@pytest.mark.parametrize("side", ["left", "right"])
def test_text_goes_on_as_without_the_batch(query, side):
    model, images = build(query), pictures()
    ids, mask = IDS, MASK
    if side == "left":
        ids, mask = (torch.stack([x[b].roll(int((~MASK[b]).sum())) for b in range(3)]) for x in (IDS, MASK))
    together = model.generate(ids, images, 4, mask=mask)
    for sample in range(3):
        alone = model.generate(IDS[sample : sample + 1, MASK[sample]], images[sample : sample + 1], 4)
        assert torch.equal(together[sample], alone[0])
    stop = int(together[0, 1])
    stopped = model.generate(ids, images, 4, mask=mask, stop_tokens=[stop], pad_token=PAD)
    assert (stopped[0, 2:] == PAD).all()


def test_loss_is_the_cross_entropy_of_the_answers():
    model, images = build(), pictures()
    output = model(IDS, images, MASK, LABELS)
    terms = []
    for sample in range(3):
        places = (output.labels[sample] != IGNORE_INDEX).nonzero().flatten()
        chances = output.logits[sample].log_softmax(-1)
        terms += [-chances[place - 1, output.labels[sample, place]] for place in places]
    torch.testing.assert_close(output.loss(), torch.stack(terms).mean())
    assert int(output.answers().sum()) == len(terms)


@QUERIES
def test_every_weight_but_unused_heads_learns(query):
    model = build(query)
    model(IDS, pictures(), MASK, LABELS).loss().backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    assert idle == {"vision.backbone.head.weight", "vision.backbone.head.bias"}


def test_text_alone_needs_no_images():
    model = build("text")
    empty = [torch.zeros(0, 3, 8, 12, dtype=torch.float64)]
    assert model(IDS[1:2, :4], empty).grid == () and model.generate(IDS[1:2, :4], empty, 2).shape == (1, 2)


def test_it_inherits_from_llava_and_from_a_mamba():
    text = transformers.LlamaConfig(
        hidden_size=DIM, num_hidden_layers=3, num_attention_heads=3, intermediate_size=128, vocab_size=WORDS
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = transformers.LlavaConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_index=3)
    llava = transformers.LlavaForConditionalGeneration(config)
    mamba = MambaLM(WORDS, DIM, depth=3, mixer=MIXERS["mamba"])
    language = MambaLM(WORDS, DIM, depth=3, mixer=MIXERS["mamba"], d_intermediate=128)
    model = VisionLanguageMamba(ClipPatches(llava.model.vision_tower), language, cross_after=[0])
    subclone(llava.model.language_model, model.language, magnitude_importance, ssm_from=mamba)
    assert init_convolutions(model.language, "normal")
    model.projector.load_state_dict(llava.model.multi_modal_projector.state_dict())
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(model.projector(x), llava.model.multi_modal_projector(x))
    theirs = llava.model.language_model.layers[1].mlp
    y = torch.randn(2, DIM)
    torch.testing.assert_close(model.language.blocks[1].mlp(y), theirs(y))
    ours, source = (lm.blocks[2].mixer for lm in (model.language, mamba))
    assert torch.equal(ours.branches[0].ssm.A_log, source.branches[0].ssm.A_log)
    assert not torch.equal(ours.branches[0].conv1d.weight, source.branches[0].conv1d.weight)


def test_the_papers_sizes():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        student, small, large = sizes.trans_llava_600m(), sizes.llava_llama_1b(), sizes.llava_llama_3b()
    assert count(student.vision) == 303_507_456  # CLIP ViT-L/14 at 336 pixels, without CLIP's projection
    assert count(student.language) + count(student.cross) == 595_723_392
    assert count(small.model.language_model) == 1_235_814_400  # LLaMA-3.2-1B
    assert count(large.model.language_model) == 3_212_749_824  # LLaMA-3.2-3B
    assert count(student.projector) == 1024 * 1152 + 1152 + 1152**2 + 1152
    assert student.build_config == {"build": "trans_llava_600m", "arguments": {"image_size": 336, "query": "image"}}


def test_a_reset_model_starts_as_new_and_keeps_its_vision():
    model = build()
    vision = {name: x.clone() for name, x in model.vision.state_dict().items()}
    model.reset_parameters()
    for block in model.cross.values():
        assert not block.mixer.out_proj.weight.any() and not block.mlp.fc2.weight.any()
    assert all(torch.equal(x, vision[name]) for name, x in model.vision.state_dict().items())
    assert "language.blocks.0.mixer.branches.0.ssm.A_log" in model.no_weight_decay()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 1}, "images has 1 entries for 3 samples"),
        ({"counts": (2, 1, 1)}, r"sample 1 has 0 image placeholders \(-200\) and 1 images"),
        ({"counts": (2, 0, 0)}, r"sample 2 has 1 image placeholders \(-200\) and 0 images"),
        ({"labels": None}, "patches read the question, and without labels an answer is part of it"),
    ],
)
def test_samples_that_do_not_fit_are_named(change, message):
    images = [torch.zeros(n, 3, 8, 12, dtype=torch.float64) for n in change.get("counts", (2, 0, 1))]
    with pytest.raises(ValueError, match=message):
        build()(IDS, images[: change.get("images", 3)], MASK, change.get("labels", LABELS))


def test_images_of_two_sizes_are_refused():
    images = pictures()
    images[2] = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    with pytest.raises((ValueError, TypeError), match=r"images of sample 2 have shape|image"):
        build().splice(IDS, images, MASK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_after": [2]}, "no CrossMamba block can follow block 2: expected 0 to 1 of 3, because nothing reads"),
        ({"cross_after": [3], "query": "text"}, "no CrossMamba block can follow block 3: expected 0 to 2 of 3"),
    ],
)
def test_impossible_models_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**{"cross_after": (), **options})


def test_what_is_no_vision_encoder_or_query_is_refused():
    language = MambaLM(WORDS, DIM, depth=3)
    with pytest.raises(TypeError, match="a vision encoder needs a width `dim`, Identity has None"):
        VisionLanguageMamba(nn.Identity(), language)
    with pytest.raises(TypeError, match="(?s)query.*audio"):
        build("audio")


def test_a_pass_without_labels_has_no_loss():
    output = build("text")(IDS, pictures(), MASK)
    with pytest.raises(ValueError, match="no labels to learn from"):
        output.loss()
    with pytest.raises(ValueError, match="no labels mark the answers"):
        output.answers()


@QUERIES
def test_bfloat16_weights_keep_a_float32_stream_and_autocast_trains(query):
    model = build(query).to(torch.bfloat16)
    images = [x.bfloat16() for x in pictures()]
    assert all(layer.dtype == torch.float32 for layer in model(IDS, images, MASK, LABELS).layers)
    assert model.generate(IDS, images, 2, mask=MASK).shape == (3, 2)
    model = model.float()
    with torch.autocast("cpu", torch.bfloat16):
        model(IDS, [x.float() for x in pictures()], MASK, LABELS).loss().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
