"""Image models of transformers that cannot become a canonical Transformer, each with the reason."""

_TYPES = {
    "it is a convolutional network": """
        align_vision_model bit convnext convnextv2 dinov3_convnext efficientnet gemma3n_vision hgnet_v2 mobilenet_v1
        mobilenet_v2 pp_lcnet pp_lcnet_v3 pp_lcnet_v4 regnet resnet rt_detr_resnet superpoint textnet uvdoc
        uvdoc_backbone""",
    "convolutions stand inside and between its blocks": """
        cvt levit mobilevit mobilevitv2 swiftformer efficientloftr florence_vision
        pp_ocrv5_mobile_det pp_ocrv5_mobile_rec pp_ocrv5_server_det pp_ocrv5_server_rec pp_ocrv6_medium_det
        pp_ocrv6_small_det pp_ocrv6_small_rec pp_ocrv6_tiny_rec slanet""",
    "tokens are mixed by pooling or modulation, not by attention": "poolformer focalnet",
    "tokens attend within windows, in stages of several widths": """
        swin swinv2 swin2sr donut-swin maskformer-swin dinat hiera sam2_hiera_det_model sam2_vision_model""",
    "keys and values come from a coarser grid, in stages of several widths": "pvt pvt_v2 segformer glpn",
    "tokens attend within windows": """
        vitdet lw_detr_vit rf_detr_dinov2 sam3_vit_model sam3_vision_model""",
    "tokens attend within windows, and relative positions follow from the queries": """
        sam_vision_model sam_hq_vision_model got_ocr2_vision deepseek_ocr2_sam_vision_model
        unlimited_ocr_sam_vision_model slanext_vision pp_formulanet_vision""",
    "relative positions follow from the queries": "seggpt",
    "its rotary positions in two axes are not DINOv3's": """
        pixtral llama4_vision_model mlcd mlcd_vision_model lfm3_vl_vision sapiens2 gemma4_vision step3p5_vision
        inkling2_vision""",
    "patches of several images come packed into one sequence": """
        cohere_compass_vision cosmos3_edge_vision dots3_note_vision_encoder ernie4_5_vl_moe_vision exaone4_5_vision
        glm4v_vision glm4v_moe_vision glm5_next_vision glm_image_vision glm_ocr_vision hunyuan_vl_vision hy_v4_vl_vision
        kimi_k25_vision minicpm_ocr_vision minicpmv4_6_vision minicpmv4_7_vision minimax_m3_vl_vision
        muse_glimmer_vision muse_spark_vision paddleocr_vl_vision qwen2_5_omni_vision_encoder qwen2_5_vl_vision
        qwen2_vl_vision
        qwen3_5_moe_vision qwen3_5_vision qwen3_omni_moe_vision_encoder qwen3_vl_moe_vision qwen3_vl_vision
        qwen4_exp_vision video_llama_3_vision""",
    "positions are resampled from a table for larger images": "radio",
    "positions are looked up by the proportions of each image": """
        idefics2_vision idefics3_vision smolvlm_vision phi4_multimodal_vision""",
    "patches come with their row and column, which are embedded apart": """
        kosmos_2_5_vision_model pix2struct_vision_model gemma4_unified_vision""",
    "a norm stands between the patches and their positions": "aimv2_vision_model ovis2_vision",
    "patches overlap the border of the image": "vitpose_backbone",
    "detection tokens stand behind the patches, and further positions are added between blocks": "yolos",
    "queries join the tokens before the last blocks": "eomt eomt_dinov3 videomt",
    "a token that sums up the other frames joins every block": "xclip_vision_model",
    "groups of patches become tokens between the blocks": "groupvit_vision_model",
    "its output is the tokens of every block": "bridgetower_vision_model",
    "gates and embeddings of tiles stand between its blocks": "mllama_vision_model",
    "patches span several frames": "videomae vivit vjepa2",
    "its layers fold patches into larger ones, without attention": "inkling_vision",
    "attention over space and over time alternate": "timesformer videoprism_vision_model",
    "a decoder queries the image for objects": """
        conditional_detr d_fine dab-detr deformable_detr deimv2 detr grounding-dino lw_detr mm-grounding-dino
        omdet-turbo pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4 rf_detr rt_detr rt_detr_v2 table-transformer""",
    "a decoder queries the image for masks": """
        mask2former maskformer oneformer sam sam2 sam2_video sam3 sam3_video sam3_tracker sam3_tracker_video sam_hq
        edgetam edgetam_video sam3_lite_text""",
    "words and images share one sequence": "vilt layoutlmv2 layoutlmv3 visual_bert lxmert",
    "latents query the input": "perceiver",
    "two images are compared keypoint by keypoint": "lightglue superglue",
    "a decoder reads its blocks at several depths: give its backbone": "dpt depth_pro zoedepth",
    "no family knows GPT-2's names with norms that have no mean": "imagegpt",
    "norms of queries and keys have a weight of their own for every head": "chameleon",
    "its image tower is several models one after the other": "deepseek_ocr2 unlimited_ocr",
    "no family knows the names of its image tower": "molmo2",
    "it wraps a model of timm: give that model": "timm_backbone timm_wrapper",
}
REFUSED = {kind: reason for reason, kinds in _TYPES.items() for kind in kinds.split()}
