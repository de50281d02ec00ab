"""The transformers of the capture benchmark: small random configurations of 38 architectures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from capture_models import Build, Entry
from torch import nn

_BASE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
_TEXT = _BASE | {"vocab_size": 100, "max_position_embeddings": 64}
_GROUPED = _TEXT | {"num_key_value_heads": 2}
_IMAGE = _BASE | {"image_size": 32, "patch_size": 8}
_CLIP = {
    "text_config": _TEXT | {"projection_dim": 32},
    "vision_config": _IMAGE | {"projection_dim": 32},
    "projection_dim": 32,
}
_WIDTHS = {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}

# class, configuration, inputs, output fields
_TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "bert": ("BertForSequenceClassification", _TEXT, "text", "logits"),
    "roberta": ("RobertaForSequenceClassification", _TEXT, "text", "logits"),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 100},
        "text",
        "logits",
    ),
    "electra": ("ElectraModel", _TEXT | {"embedding_size": 64}, "text", "last_hidden_state"),
    "albert": (
        "AlbertModel",
        _TEXT | {"embedding_size": 32},
        "text",
        "last_hidden_state pooler_output",
    ),
    "mobilebert": (
        "MobileBertForSequenceClassification",
        _BASE
        | {
            "vocab_size": 100,
            "intermediate_size": 64,
            "embedding_size": 32,
            "intra_bottleneck_size": 32,
            "true_hidden_size": 32,
        },
        "text",
        "logits",
    ),
    "deberta_v2": ("DebertaV2Model", _TEXT, "text", "last_hidden_state"),
    "mpnet": ("MPNetModel", _TEXT, "text", "last_hidden_state pooler_output"),
    "modernbert": ("ModernBertModel", _TEXT | {"pad_token_id": 0}, "text", "last_hidden_state"),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64},
        "decoder",
        "logits",
    ),
    "llama": ("LlamaForCausalLM", _GROUPED, "decoder", "logits"),
    "mistral": ("MistralForCausalLM", _GROUPED, "decoder", "logits"),
    "qwen2": ("Qwen2ForCausalLM", _GROUPED, "decoder", "logits"),
    "qwen3": ("Qwen3ForCausalLM", _GROUPED | {"head_dim": 16}, "decoder", "logits"),
    "gemma": ("GemmaForCausalLM", _GROUPED | {"head_dim": 16}, "decoder", "logits"),
    "phi3": ("Phi3ForCausalLM", _GROUPED | {"pad_token_id": 0}, "decoder", "logits"),
    "opt": (
        "OPTForCausalLM",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "vocab_size": 100,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 64,
        },
        "decoder",
        "logits",
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", _TEXT, "decoder", "logits"),
    "mixtral": ("MixtralForCausalLM", _GROUPED | {"num_local_experts": 4}, "decoder", "logits"),
    "olmo": ("OlmoForCausalLM", _GROUPED, "decoder", "logits"),
    "bloom": (
        "BloomForCausalLM",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100},
        "decoder",
        "logits",
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 100,
        },
        "two texts",
        "logits",
    ),
    "bart": (
        "BartForConditionalGeneration",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "vocab_size": 100,
            "max_position_embeddings": 64,
        },
        "two texts",
        "logits",
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "vocab_size": 100,
            "num_mel_bins": 80,
            "max_source_positions": 100,
            "max_target_positions": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        "sound and text",
        "logits",
    ),
    "clip": ("CLIPModel", _CLIP, "text and image", "logits_per_image"),
    "wav2vec2": (
        "Wav2Vec2Model",
        _BASE
        | {
            "conv_dim": (32,) * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        "wave",
        "last_hidden_state",
    ),
    "vit": ("ViTForImageClassification", _IMAGE, "image 32", "logits"),
    "deit": ("DeiTForImageClassification", _IMAGE, "image 32", "logits"),
    "dinov2": ("Dinov2ForImageClassification", _IMAGE, "image 32", "logits"),
    "beit": ("BeitForImageClassification", _IMAGE, "image 32", "logits"),
    "swin": (
        "SwinForImageClassification",
        {
            "image_size": 64,
            "patch_size": 4,
            "embed_dim": 32,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        "image 64",
        "logits",
    ),
    "convnext": ("ConvNextForImageClassification", _WIDTHS, "image 64", "logits"),
    "resnet": (
        "ResNetForImageClassification",
        _WIDTHS | {"embedding_size": 16},
        "image 64",
        "logits",
    ),
    "mobilevit": (
        "MobileViTForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "neck_hidden_sizes": [16, 24, 32, 48, 64, 64, 128],
        },
        "image 64",
        "logits",
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1] * 4, "decoder_hidden_size": 32},
        "image 64",
        "logits",
    ),
    "regnet": (
        "RegNetForImageClassification",
        _WIDTHS | {"embedding_size": 16, "groups_width": 8},
        "image 64",
        "logits",
    ),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"image_size": 64}, "image 64", "logits"),
    "siglip_vision": ("SiglipVisionModel", _IMAGE, "image 32", "last_hidden_state pooler_output"),
}


class _Field(nn.Module):
    """A transformers model called by argument names, giving the named fields of its result."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], output: str, cache: bool) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, names, output.split()
        self.options = {} if cache else {"use_cache": False}

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(self.names, inputs, strict=True))
        result = self.model(**given, **self.options)
        return tuple(getattr(result, field) for field in self.outputs)


def transformers_entries() -> Iterator[Entry]:
    for name, row in _TRANSFORMERS.items():
        yield name, row[2].split()[0], _transformers_builder(*row)


def _transformers_builder(kind: str, config: dict[str, Any], needs: str, output: str) -> Build:
    def build() -> tuple[nn.Module, tuple[Any, ...]]:
        import transformers

        family = getattr(transformers, kind)
        model = family(family.config_class(**config)).eval()
        inputs = _transformers_inputs(needs)
        cached = needs in ("decoder", "two texts", "sound and text")
        return _Field(model, tuple(inputs), output, not cached).eval(), tuple(inputs.values())

    return build


def _transformers_inputs(needs: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 90, (2, 16))
    mask = torch.ones(2, 16, dtype=torch.long)
    if needs.startswith("image"):
        size = int(needs.split()[1])
        return {"pixel_values": torch.rand(2, 3, size, size)}
    return {
        "text": {"input_ids": ids, "attention_mask": mask},
        "decoder": {"input_ids": ids, "attention_mask": mask},
        "two texts": {"input_ids": ids, "decoder_input_ids": ids + 1},
        "sound and text": {"input_features": torch.rand(2, 80, 200), "decoder_input_ids": ids},
        "text and image": {
            "input_ids": ids,
            "pixel_values": torch.rand(2, 3, 32, 32),
            "attention_mask": mask,
        },
        "wave": {"input_values": torch.rand(2, 4000)},
    }[needs]
