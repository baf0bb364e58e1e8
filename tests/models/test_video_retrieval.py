import pytest
import torch

from transmamba.models import (
    ClipFrames,
    ClipText,
    MambaEncoder,
    MambaFrames,
    MeanPooling,
    PooledText,
    TightHead,
    VideoMamba,
    VideoRetriever,
    VideoTextMamba,
    clip4clip,
)

transformers = pytest.importorskip("transformers")


@pytest.fixture
def video():
    return MambaFrames(VideoMamba((8, 12), 4, num_frames=3, dim=12, depth=2, num_classes=0), 5).eval()


@pytest.fixture
def clips():
    return torch.randn(2, 3, 3, 8, 12)


@pytest.fixture
def clip():
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 12, "intermediate_size": 20}
    words = {"vocab_size": 11, "max_position_embeddings": 7, "bos_token_id": 9, "eos_token_id": 10}
    pixels = {"image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=layers | words, vision_config=layers | pixels, projection_dim=5)
    return transformers.CLIPModel(config).eval()


def test_frames_are_pooled_as_in_videomambas_retrieval_models(video, clips):
    reference = VideoTextMamba(video.encoder, 7).eval()
    reference.pool_norm = video.pool_norm
    expected = video.proj(reference(clips, per_frame=True).pooled)
    torch.testing.assert_close(video(clips), expected)


def test_padded_frames_of_a_clip_do_not_matter(video, clips):
    mask = torch.tensor([[True, True, False], [True, True, True]])
    other = clips.clone()
    other[0, :, 2] = 9.0
    torch.testing.assert_close(video(other, mask)[0, :2], video(clips, mask)[0, :2])
    torch.testing.assert_close(video(clips, mask)[1], video(clips)[1])


def test_a_tubelet_of_several_frames_is_one_vector():
    encoder = VideoMamba(8, 4, num_frames=4, tubelet=2, dim=12, depth=1, num_classes=0)
    model, clips = MambaFrames(encoder, 5).eval(), torch.randn(2, 3, 4, 8, 8)
    mask = torch.tensor([[True, False], [True, True]])
    other = clips.clone()
    other[0, :, 2:] = 9.0
    assert model(clips, mask).shape == (2, 2, 5)
    torch.testing.assert_close(model(other, mask)[0, 0], model(clips, mask)[0, 0])


def test_directions_of_a_clip_add_up_to_what_the_mixers_wrote(video, clips):
    frames, features = video.forward_features(clips, directions=True)
    torch.testing.assert_close(frames, video(clips))
    expected = video.encoder.forward_features(clips, directions=True)
    for got, wanted in zip(features.directions[1], expected.directions[1], strict=True):
        torch.testing.assert_close(got, wanted)
    assert features.extra == (0,) and features.grid == (3, 2, 3)


def test_a_mask_of_other_frames_is_refused(video, clips):
    with pytest.raises(ValueError, match="frame_mask has 2 frames, the encoder's grid 3"):
        video(clips, torch.ones(2, 2, dtype=torch.bool))


def test_a_text_is_the_mean_of_its_real_tokens():
    text = PooledText(MambaEncoder(11, 8, depth=1), 8, 5).eval()
    ids, mask = torch.tensor([[3, 4, 5, 0]]), torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(text(ids, mask).pooled, text(ids[:, :3]).tokens.mean(1))


def test_clip4clip_is_clip_on_frames(clip):
    ids, clips = torch.tensor([[9, 3, 10, 10], [9, 4, 5, 10]]), torch.randn(3, 3, 4, 8, 8)
    teacher = clip4clip(clip)
    images = clip.get_image_features(clips.transpose(1, 2).flatten(0, 1)).pooler_output.view(3, 4, 5)
    texts = clip.get_text_features(ids).pooler_output
    expected = MeanPooling()(texts, images) * clip.logit_scale.exp()
    torch.testing.assert_close(teacher(ids, clips), expected)


def test_a_video_of_one_still_frame_is_an_image_to_clip(clip):
    ids, image = torch.tensor([[9, 3, 10]]), torch.randn(2, 3, 8, 8)
    expected = clip(input_ids=ids, pixel_values=image).logits_per_text
    torch.testing.assert_close(clip4clip(clip)(ids, image[:, :, None].expand(-1, -1, 4, -1, -1)), expected)


def test_tokens_of_the_teacher_stand_where_those_of_the_student_do(clip):
    clips = torch.randn(2, 3, 3, 8, 8)
    frames, features = clip4clip(clip).video.forward_features(clips)
    torch.testing.assert_close(frames, clip4clip(clip).video(clips))
    assert features.grid == (3, 2, 2) and features.last.shape == (2, 12, 12) and len(features.layers) == 2
    one = clip.vision_model(pixel_values=clips[1, :, 2][None]).last_hidden_state[0, 1 + 3]
    torch.testing.assert_close(features.last[1, 2 * 4 + 3], clip.vision_model.post_layernorm(one))
    torch.testing.assert_close(features.layers[-1][1, 2 * 4 + 3], one)


def test_padded_text_is_the_same_text_to_clip(clip):
    ids, clips = torch.tensor([[9, 3, 10, 10, 10]]), torch.randn(2, 3, 1, 8, 8)
    mask = torch.tensor([[True, True, True, False, False]])
    teacher = clip4clip(clip)
    torch.testing.assert_close(teacher(ids, clips, mask), teacher(ids[:, :3], clips))


def test_comparing_in_chunks_changes_nothing(clip):
    teacher = clip4clip(clip, TightHead(5)).eval()
    torch.nn.init.normal_(teacher.head.cross.out_proj.weight)
    ids, clips = torch.randint(9, (7, 4)), torch.randn(3, 3, 2, 8, 8)
    mask = torch.rand(7, 4) < 0.7
    text, frames = teacher.text(ids, mask), teacher.video(clips)
    whole = teacher.similarity(text, frames, mask)
    torch.testing.assert_close(teacher.similarity(text, frames, mask, chunk=3), whole)
    torch.testing.assert_close(whole, teacher(ids, clips, mask))


def test_a_retriever_learns_to_tell_two_clips_apart(video):
    torch.manual_seed(0)
    model = VideoRetriever(PooledText(MambaEncoder(11, 8, depth=1), 8, 5), video)
    ids, clips = torch.tensor([[1, 2], [3, 4]]), torch.randn(2, 3, 3, 8, 12)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids, clips), torch.arange(2))
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize("side", [ClipText, ClipFrames, clip4clip])
def test_another_model_is_no_clip(side):
    with pytest.raises(TypeError, match="expected a CLIPModel of transformers, got a Identity without"):
        side(torch.nn.Identity())


def test_clip_needs_something_to_see(clip):
    with pytest.raises(ValueError, match=r"ids have shape \(2, 0\): there is nothing for CLIP to see"):
        ClipText(clip)(torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"clips have shape \(0, 3, 2, 8, 8\)"):
        ClipFrames(clip)(torch.zeros(0, 3, 2, 8, 8))


def test_a_text_encoder_of_another_width_is_refused():
    with pytest.raises(ValueError, match="output of the encoder has 8 channels, the module was built for 7"):
        PooledText(MambaEncoder(11, 8, depth=1), 7, 5)(torch.ones(1, 2, dtype=torch.long))


def test_masks_of_other_sizes_are_refused(clip):
    ids, clips, teacher = torch.randint(9, (2, 4)), torch.randn(2, 3, 2, 8, 8), clip4clip(clip)
    with pytest.raises((ValueError, TypeError), match="frame_mask"):  # a TypeError where inner calls are checked too
        teacher(ids, clips, frame_mask=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"token_mask has shape \(2, 5\), its frames or tokens \(2, 4\)"):
        text, frames = teacher.text(ids), teacher.video(clips)
        teacher.similarity(text, frames, torch.ones(2, 5, dtype=torch.bool))
