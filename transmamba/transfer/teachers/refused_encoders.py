"""Text and audio encoders that cannot become a canonical Transformer, each with the part that prevents it."""

_TEXT = {
    "positions are added to the attention scores (relative position bias), which no canonical encoder does": (
        "mpnet", "t5", "mt5", "umt5", "longt5", "switch_transformers", "pop2piano", "udop",
    ),
    "its attention scores are sums of products with contents and with relative positions": (
        "deberta", "deberta-v2", "sew-d", "xlnet",
    ),
    "its stream is shortened between blocks": ("funnel",),
    "most tokens attend to a window or to blocks, and some to all, with projections or patterns of their own": (
        "longformer", "led", "bigbird_pegasus", "pegasus_x",
    ),
    "its attention is an approximation of softmax attention (sampled, hashed, or by landmarks)": (
        "nystromformer", "mra", "yoso", "reformer",
    ),
    "it mixes tokens by Fourier transforms, not by attention": ("fnet",),
    "part of its heads are convolutions over a span of tokens": ("convbert",),
    "its layers are bottlenecks with several MLPs, and its norms do not normalise": ("mobilebert",),
    "its linear layers are grouped": ("squeezebert",),
    "it reads characters, and shortens their stream before most of its layers": ("canine",),
    "every layer has an adapter for each language": ("xmod",),
    "shapes and pronunciations of characters are mixed into the embedding of words": ("roc_bert",),
    "the places of words on a page are part of its embedding or of its attention scores": (
        "bros", "layoutlm", "layoutxlm", "lilt",
    ),
    "paths in the markup are part of its embedding": ("markuplm",),
    "rows and columns of tables are part of its embedding": ("tapas",),
    "entities stand beside words in its stream, with embeddings or queries of their own": ("luke",),
    "images stand beside words in its stream": ("flava_multimodal_model",),
    "its layers attend to an image as well (cross-attention)": (
        "blip_text_model", "blip_2_qformer", "instructblip_qformer", "instructblipvideo_qformer",
    ),
    "its stream is normalised and projected to another width after the last layer": ("altclip_text_model",),
    "it attends causally where a mask is given, and in both directions where none is": ("aimv2_text_model",),
    "its positions are computed, not stored": ("tipsv2_text_model",),
    "its class token stands behind the text, and its positions are computed, not stored": ("videoprism_text_model",),
    "its first layers are convolutions": ("sam3_lite_text_text_model",),
    "values are turned by rotary positions as well": ("clvp", "clvp_encoder"),
    "its heads are gated, subtract part of their values, and add embeddings to values": ("neomme",),
    "its layers hold experts": ("nllb-moe", "openai_privacy_filter"),
    "every layer adds an embedding of its own, and scales its stream": ("embedding_gemma2", "embedding_gemma2_text"),
    "it reads bytes in patches of varying length": (
        "blt_global_transformer", "blt_local_decoder", "blt_local_encoder", "blt_patcher",
    ),
    "it is a decoder of an image's text, with relative positions added to its scores": ("pix2struct_text_model",),
    "it reads series of numbers, not tokens": (
        "autoformer", "informer", "time_series_transformer", "patchtst", "patchtsmixer", "timesfm", "timesfm2_5",
        "decision_transformer",
    ),
    "its encoder is Gemma's read in both directions, which no family covers": (
        "t5gemma", "t5_gemma_module", "t5gemma2", "t5gemma2_encoder", "t5gemma2_text",
    ),
    "encoder and decoder are models of their own: give one of them, teacher.encoder": (
        "encoder-decoder", "speech-encoder-decoder", "rag",
    ),
    "it folds proteins, of which a language model is a part: give that part": ("esmfold2", "evolla", "EvollaModel"),
}  # fmt: skip

_AUDIO = {
    "convolutions on the waveform and a convolution for positions come before its layers": (
        "wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "sew", "data2vec-audio", "omniasr",
        "omniasr_audio", "omniasr_ctc",
    ),
    "its layers are Conformers, with a convolution beside attention and MLP": (
        "wav2vec2-bert", "wav2vec2-conformer", "seamless_m4t", "seamless_m4t_v2", "parakeet_ctc", "parakeet_encoder",
        "parakeet_rnnt", "parakeet_tdt", "lasr_ctc", "lasr_encoder", "granite_speech", "granite_speech_encoder",
        "granite_speech_plus", "granite_speech_plus_encoder", "granite_speech5_ctc", "granite_speech5_encoder",
        "phi4_multimodal_audio", "gemma3n_audio", "gemma4_audio", "canary", "canary_decoder", "cohere_asr",
        "nemotron_asr_streaming", "nemotron_asr_streaming_encoder", "nemotron3_5_asr", "fastspeech2_conformer",
        "fastspeech2_conformer_with_hifigan",
    ),
    "its patches overlap in the spectrogram, which is read transposed": ("audio-spectrogram-transformer",),
    "it is a Swin Transformer: windows of patches that shrink from stage to stage": ("clap_audio_model",),
    "the stream is averaged over pairs of frames before the last norm": (
        "qwen2_audio", "qwen2_audio_encoder", "audioflamingo3", "audioflamingo3_encoder", "musicflamingo",
    ),
    "its frames attend within chunks, and other convolutions than Whisper's come before its layers": (
        "qwen2_5_omni_audio_encoder", "qwen3_omni_moe_audio_encoder", "qwen3_asr", "qwen3_asr_encoder",
    ),
    "it has rotary positions or causal convolutions where a canonical audio encoder has a table of positions": (
        "glmasr", "glmasr_encoder", "voxtral_realtime", "voxtral_realtime_encoder", "dots3_note_audio_encoder",
        "moonshine", "moonshine_streaming", "moonshine_streaming_encoder", "pe_audio", "pe_audio_encoder",
        "pe_audio_video_encoder", "pe_video_encoder", "nemotron3_diarization", "nemotron3_diarization_audio",
        "nemotron3_5_transcribe_audio", "nemotron3_5_transcribe_asr_audio", "nemotron3_5_transcribe_word_timestamp",
    ),
    "its layers hold a filter over time beside attention": ("fun_asr_nano", "fun_asr_nano_encoder"),
    "gated convolutions and computed positions come before its layers": ("speech_to_text",),
    "convolutions come before its layers, and relative positions are added to the scores": ("speecht5",),
    "its encoder of sound joins several others, of which none is covered": ("nemo_speechlm",),
    "it is a codec or a vocoder of convolutions, or recurrent, not a Transformer": (
        "dac", "encodec", "mimi", "mimi_encoder", "mimi_decoder", "univnet", "speecht5_hifigan",
        "fastspeech2_conformer_hifigan", "neucodec", "xcodec", "xcodec2", "wavtokenizer", "wavtokenizer_encoder",
        "higgs_audio_v2_tokenizer", "pocket_tts_audio_tokenizer", "pocket_tts_audio_tokenizer_encoder",
        "pocket_tts_audio_tokenizer_decoder", "vibevoice_acoustic_tokenizer", "vibevoice_acoustic_tokenizer_encoder",
        "vibevoice_acoustic_tokenizer_decoder", "vibevoice_diffusion", "qwen2_5_omni_bigvgan",
    ),
    "it generates sound from several streams of codes or from latents": (
        "bark", "dia", "dia_encoder", "dia_decoder", "csm", "csm_depth_decoder_model", "moshi", "moshi_depth",
        "musicgen", "musicgen_decoder", "musicgen_melody", "musicgen_melody_decoder", "vits", "pocket_tts",
        "gradium_phonon_tts", "kyutai_speech_to_text", "higgs_audio_v2", "clvp_decoder", "qwen2_5_omni_token2wav",
        "qwen2_5_omni_dit", "vibevoice", "qwen3_omni_moe_talker_code_predictor",
    ),
    "its encoder of sound is not covered by any family": (
        "inkling_audio", "muse_spark_audio", "gemma4_unified_audio",
    ),
}  # fmt: skip

REFUSED = {kind: reason for group in (_TEXT, _AUDIO) for reason, kinds in group.items() for kind in kinds}
