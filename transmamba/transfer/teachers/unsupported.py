"""Decoder language models of transformers that cannot become a canonical Transformer, each with the reason.

A model of several parts is judged by its parts, for its image tower may be one that is known.
"""

EXPERTS = "its MLPs are experts behind a router, where a canonical block has one MLP"
LATENT = "its keys and values are expanded from a common latent vector"
RECURRENT = "it is not a plain Transformer: some or all of its layers are recurrent or convolutional"
SINKS = "its attention has learned sinks, which take a share of every softmax"
ALIBI = "positions are added to the scores by ALiBi, which no canonical block does"
RELATIVE = "its scores depend on relative positions in a way of its own"
CROSS = "its decoder reads an encoder through cross-attention, where canonical decoders read text alone"
PER_LAYER = "every layer reads embeddings of its own"
AFTER_ROTATION = (
    "queries and keys are normalised after their rotation, with gains that the rotation does not commute with"
)
AXES = "its rotary positions have three axes, for pictures and films in the text"

_BY_REASON = {
    EXPERTS: """
        afmoe aria_text beam cohere2_moe dbrx dots1 ernie4_5_moe ernie4_5_vl_moe_text exaone_moe flex_olmo glm4_moe
        glm4v_moe_text gpt_oss granitemoe granitemoeshared granitemoe_swa hunyuan_v1_moe hy_v3 jetmoe kolibri1 laguna
        lfm2_moe llama4_text mellum minimax minimax_m2 minimax_m3_vl_text mixtral olmoe phimoe qwen2_moe
        qwen3_moe qwen3_omni_moe_text qwen3_vl_moe_text sarvam_moe solar_open zaya flint mimo_v2_flash
    """,
    LATENT: """
        axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 dots3_note_text glm4_moe_lite glm_moe_dsa
        hy_v4 longcat_flash minicpm3 sarvam_mla youtu mistral4 mistral_large4_text
    """,
    RECURRENT: """
        bailing_hybrid falcon_h1 granitemoehybrid inkling2_loop_text inkling2_text inkling_text kimi_linear lara_mini
        lfm2 lfm3 nemotron_h olmo_hybrid qwen3_5_text qwen3_5_moe_text qwen3_next
        qwen4_exp_text recurrent_gemma rwkv xlstm
    """,
    SINKS: "granite_swa",
    ALIBI: "bloom mpt",
    RELATIVE: "cpmant",
    CROSS: "mllama_text_model trocr",
    PER_LAYER: """
        gemma3n_text gemma4_assistant gemma4_text gemma4_unified_assistant
        gemma4_unified_text
    """,
    AFTER_ROTATION: "hunyuan_v1_dense hunyuan_vl_text",
    AXES: "qwen2_vl_text qwen2_5_vl_text qwen2_5_omni_text qwen3_vl_text glm4v_text paddleocr_vl_text glm_ocr_text",
}
REFUSED = {kind: reason for reason, kinds in _BY_REASON.items() for kind in kinds.split()} | {
    "apertus": "its activation has learned parameters",
    "apertus1p5_text": "its activation has learned parameters",
    "bitnet": "its layers quantise weights and activations, and its branches have norms inside",
    "blt": "it reads bytes in patches of varying length through an encoder and a decoder of its own",
    "cohere_compass_text": "its layers have positions of their own kind",
    "ctrl": "its positions are computed in an order of its own, and no tensor stores them",
    "diffllama": "its attention is the difference of two softmaxes",
    "doge": "its attention mask is computed from the values",
    "dory": "its streams are kept on a sphere, with learned step sizes",
    "emu3_text_model": "its vocabulary holds pictures as well, and no canonical model was proven on it",
    "gpt_neox_japanese": "the attention of its last layer alone has a bias, which is added outside of the linear layer",
    "hrm_text": "two modules take turns on one text, several times over",
    "ministral3": "queries are scaled by their position",
    "modernbert-decoder": "a layer, an activation and a norm stand between its last block and the vocabulary",
    "nanochat": "a norm without parameters stands between embedding and first block",
    "phi4_multimodal": "its layers hold adapters for pictures and sound that are not merged",
}
