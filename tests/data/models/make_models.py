#!/usr/bin/env python3
"""Writes small random models in the form of the hub's checkpoints and what transformers computes from them in float32:
qwen3_5_moe/ and qwen3_vl_moe/ (models for text and images, of which only the text model is there), glm4_moe_lite/,
granitemoehybrid/, nemotron_h/, nemotron_h_latent/, afmoe/, solar_open/, bailing_moe_v2/ (as GLM-4.5, which
transformers has and whose layers are the same).

    pip install torch transformers safetensors
    python make_models.py NAME
"""
import json
import os
import sys

import torch
import transformers
from safetensors.torch import save_file

SEED, LENGTHS, GREEDY = 7, (1, 17, 70), 24
FOLDER = sys.argv[1]
LATENT = FOLDER.endswith("_latent")
NAME = FOLDER.removesuffix("_latent")
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), FOLDER)
NESTED = NAME in ("qwen3_5_moe", "qwen3_vl_moe")
common = dict(vocab_size=320, hidden_size=64, num_attention_heads=4, max_position_embeddings=4096, rms_norm_eps=1e-3)

if NAME == "qwen3_5_moe":
    config = transformers.Qwen3_5MoeTextConfig(
        **common, num_hidden_layers=4, num_key_value_heads=2, head_dim=32, moe_intermediate_size=32,
        shared_expert_intermediate_size=48, num_experts_per_tok=3, num_experts=8, linear_conv_kernel_dim=4,
        linear_key_head_dim=16, linear_value_head_dim=24, linear_num_key_heads=2, linear_num_value_heads=6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
                         "mrope_interleaved": True, "mrope_section": [2, 1, 1]})
    model_class = transformers.Qwen3_5MoeForCausalLM
elif NAME == "qwen3_vl_moe":
    config = transformers.Qwen3VLMoeTextConfig(
        **common, num_hidden_layers=3, intermediate_size=80, num_key_value_heads=2, head_dim=32, moe_intermediate_size=48,
        num_experts_per_tok=3, num_experts=8, mlp_only_layers=[0],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_interleaved": True, "mrope_section": [6, 5, 5]})

    class Text(torch.nn.Module):  # transformers has no class for the text model with its output matrix
        def __init__(self, config):
            super().__init__()
            self.model = transformers.Qwen3VLMoeTextModel(config)
            self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    model_class = Text
elif NAME == "granitemoehybrid":
    config = transformers.GraniteMoeHybridConfig(
        **common, num_hidden_layers=4, num_key_value_heads=2, intermediate_size=48, shared_intermediate_size=64,
        num_local_experts=8, num_experts_per_tok=3, layer_types=["linear_attention", "full_attention"] + 2 * ["linear_attention"],
        mamba_n_heads=8, mamba_n_groups=2, mamba_d_state=24, mamba_d_head=24, mamba_expand=3, mamba_chunk_size=16,
        embedding_multiplier=1.5, residual_multiplier=0.7, attention_multiplier=0.3, logits_scaling=4.0,
        attention_bias=True, tie_word_embeddings=True)
    model_class = transformers.GraniteMoeHybridForCausalLM
elif NAME == "nemotron_h":
    config = transformers.NemotronHConfig(
        vocab_size=320, hidden_size=64, num_attention_heads=4, max_position_embeddings=4096, layer_norm_epsilon=1e-3,
        layers_block_type=["linear_attention", "moe", "full_attention"] + (["moe"] if LATENT else ["linear_attention", "mlp", "moe"]),
        num_key_value_heads=2, moe_latent_size=32 if LATENT else None,
        head_dim=32, intermediate_size=80, ssm_state_size=24, mamba_num_heads=6, mamba_head_dim=24, n_groups=2, chunk_size=16,
        n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=48, moe_shared_expert_intermediate_size=80,
        routed_scaling_factor=2.5, time_step_min=1e-30)  # what NVIDIA's code does not have
    model_class = transformers.NemotronHForCausalLM
elif NAME == "afmoe":
    config = transformers.AfmoeConfig(
        **common, num_hidden_layers=4, num_key_value_heads=2, head_dim=32, intermediate_size=80, moe_intermediate_size=32,
        num_dense_layers=1, num_experts=8, num_experts_per_tok=3, num_shared_experts=2, route_scale=1.7, sliding_window=16,
        mup_enabled=True, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    model_class = transformers.AfmoeForCausalLM
elif NAME == "bailing_moe_v2":
    config = transformers.Glm4MoeConfig(
        **common, num_hidden_layers=3, num_key_value_heads=2, head_dim=16, intermediate_size=80, moe_intermediate_size=32,
        n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2, first_k_dense_replace=1, n_group=4, topk_group=2,
        routed_scaling_factor=2.5, norm_topk_prob=True, use_qk_norm=True, attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 600000.0, "partial_rotary_factor": 0.5})
    model_class = transformers.Glm4MoeForCausalLM
elif NAME == "solar_open":
    config = transformers.SolarOpenConfig(
        **common, num_hidden_layers=2, num_key_value_heads=2, head_dim=32, moe_intermediate_size=32, n_routed_experts=8,
        num_experts_per_tok=3, n_shared_experts=1, routed_scaling_factor=1.5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})
    model_class = transformers.SolarOpenForCausalLM
else:
    config = transformers.Glm4MoeLiteConfig(
        **common, intermediate_size=80, num_hidden_layers=3, num_key_value_heads=4, moe_intermediate_size=32, n_shared_experts=1,
        n_routed_experts=8, num_experts_per_tok=2, routed_scaling_factor=1.8, q_lora_rank=24, kv_lora_rank=32, qk_rope_head_dim=8,
        qk_nope_head_dim=16, v_head_dim=24, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    model_class = transformers.Glm4MoeLiteForCausalLM
config._attn_implementation = "eager"
config._experts_implementation = "eager"

torch.manual_seed(SEED)
model = model_class(config).eval().float()
with torch.no_grad():
    for name, p in model.named_parameters():
        if name.endswith("A_log"):
            p.copy_(torch.empty_like(p).uniform_(0.1, 4.0).log())
        elif name.endswith("dt_bias"):
            p.copy_(torch.empty_like(p).uniform_(-2.0, 1.0))
        elif "norm" in name:  # Qwen3.5's multiply by 1 + weight, but those of delta nets
            p.copy_((0.0 if NAME == "qwen3_5_moe" and "linear_attn.norm" not in name else 1.0) + 0.2 * torch.randn_like(p))
        elif "conv1d" in name or name.endswith(("mamba.D", "mixer.D")):
            p.copy_(0.5 * torch.randn_like(p))
        elif name.endswith("expert_bias"):
            p.copy_(0.1 * torch.randn_like(p))
            continue
        elif ".gate.weight" in name or "router.weight" in name or "shared_expert_gate" in name:
            p.copy_(0.4 * torch.randn_like(p))
        elif "embed" in name or "lm_head" in name:
            p.copy_((1.0 if "embed" in name else 0.25) * torch.randn_like(p) / (8.0 if NAME == "afmoe" and "embed" in name else 1.0))
        else:
            p.copy_(torch.randn_like(p) / p.shape[-1] ** 0.5)
        p.copy_(p.to(torch.bfloat16).float())
    for name, b in model.named_buffers():
        if "e_score" in name:
            b.copy_(0.1 * torch.randn_like(b))

def router(layer):
    if NAME == "granitemoehybrid":
        return layer.block_sparse_moe.router
    return getattr(layer.mixer if NAME == "nemotron_h" else layer.mlp, "router" if NAME == "afmoe" else "gate", None)


def scores(gate, logits):
    """Those that choose."""
    if NAME == "afmoe":
        return logits.sigmoid() + next(layer.mlp.expert_bias for layer in model.model.layers if router(layer) is gate)
    return logits.sigmoid() + gate.e_score_correction_bias if NAME in ("glm4_moe_lite", "nemotron_h", "bailing_moe_v2", "solar_open") else logits.softmax(-1)


moe_layers = [i for i, layer in enumerate(model.model.layers) if router(layer) is not None]
seen = []
for i in moe_layers:
    router(model.model.layers[i]).register_forward_hook(
        lambda gate, _, out: seen.append((scores(gate, out[0]), out[1], out[2])))


def run(ids):
    """Logits, final hidden rows, and of each MoE layer the scores that choose, weights and ids."""
    seen.clear()
    with torch.no_grad():
        out = model.model(input_ids=torch.tensor([ids]))
        hidden = out.last_hidden_state[0]
        return model.lm_head(hidden) / getattr(config, "logits_scaling", 1.0), hidden, list(seen)


def router_margin(routes):
    margin = 1.0
    for scores, _, _ in routes:
        top = scores.topk(config.num_experts_per_tok + 1, dim=-1).values
        margin = min(margin, (top[:, -2] - top[:, -1]).min().item())
    return margin


golden, report = {}, []
generator = torch.Generator().manual_seed(SEED)
for i, length in enumerate(LENGTHS):
    while True:
        ids = torch.randint(config.vocab_size, (length,), generator=generator).tolist()
        logits, hidden, routes = run(ids)
        greedy, gap, all_ids = [], 1e9, list(ids)
        for _ in range(GREEDY):
            z = run(all_ids)[0][-1]
            top = z.topk(2).values
            gap = min(gap, (top[0] - top[1]).item())
            greedy.append(int(z.argmax()))
            all_ids.append(greedy[-1])
        margin = router_margin(run(all_ids)[2])
        if margin > 1e-4 and gap > 1e-3:
            break
    logprobs = logits.log_softmax(-1)
    golden |= {f"ids.{i}": torch.tensor(ids, dtype=torch.int32), f"logits.{i}": logits, f"hidden.{i}": hidden,
               f"router_ids.{i}": torch.stack([r[2] for r in routes]).to(torch.int32),
               f"router_weights.{i}": torch.stack([r[1] for r in routes]),
               f"greedy.{i}": torch.tensor(greedy, dtype=torch.int32)}
    report.append({"length": length, "router_margin": margin, "greedy_gap": gap})

weights = {}
for name, p in model.state_dict().items():
    if NESTED and name.startswith("model."):
        name = name.replace("model.", "model.language_model.", 1)
    if NAME == "qwen3_vl_moe" and ".mlp.experts." in name:
        p = p.transpose(1, 2)
    if NAME == "granitemoehybrid":
        if name == "lm_head.weight":
            continue
        for ours, hub in {"experts.gate_up_proj": "input_linear.weight", "experts.down_proj": "output_linear.weight",
                          "router.weight": "router.layer.weight"}.items():
            name = name.replace(f"block_sparse_moe.{ours}", f"block_sparse_moe.{hub}")
    elif NAME == "nemotron_h":
        name = name.replace("model.", "backbone.", 1)
    elif NAME in ("glm4_moe_lite", "afmoe", "bailing_moe_v2", "solar_open") and ".mlp.experts." in name:  # the hub's files have one tensor for each expert
        stem = name.rsplit(".", 1)[0]
        for e in range(p.shape[0]):
            parts = {"gate_proj": p[e].chunk(2)[0], "up_proj": p[e].chunk(2)[1]} if "gate_up" in name else {"down_proj": p[e]}
            weights |= {f"{stem}.{e}.{part}.weight": w.to(torch.bfloat16).clone() for part, w in parts.items()}
        continue
    if NAME == "nemotron_h" and ".experts." in name:
        weights |= {f"{name.replace('experts.', f'experts.{e}.')}.weight": w.to(torch.bfloat16).clone() for e, w in enumerate(p)}
        continue
    weights[name] = p.contiguous() if "e_score" in name or "expert_bias" in name else p.to(torch.bfloat16).contiguous()
written = json.loads(config.to_json_string(use_diff=False))
if NESTED:
    weights["model.visual.patch_embed.proj.weight"] = torch.zeros(4, 4, dtype=torch.bfloat16)  # what the text model does not use
    if NAME == "qwen3_5_moe":
        weights["mtp.norm.weight"] = torch.zeros(64, dtype=torch.bfloat16)
    written["model_type"] = f"{NAME}_text"
    architecture = {"qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration", "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration"}[NAME]
    written = {"architectures": [architecture], "model_type": NAME, "text_config": written, "tie_word_embeddings": False,
               "vision_config": {"model_type": NAME}}
if NAME == "granitemoehybrid":  # as the hub has it
    written["layer_types"] = ["mamba" if kind == "linear_attention" else "attention" for kind in written["layer_types"]]
    written["position_embedding_type"] = "nope"
if NAME == "bailing_moe_v2":
    hub = {"embed_tokens": "word_embeddings", "self_attn.o_proj": "attention.dense", "self_attn.q_norm": "attention.query_layernorm",
           "self_attn.k_norm": "attention.key_layernorm", "e_score_correction_bias": "expert_bias"}
    for name in list(weights):
        if "self_attn.q_proj" in name:
            parts = [weights.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
            weights[name.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
    for ours, theirs in hub.items():
        weights = {name.replace(ours, theirs): w for name, w in weights.items()}
    keys = ("vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size "
            "moe_intermediate_size num_experts_per_tok first_k_dense_replace n_group topk_group routed_scaling_factor norm_topk_prob "
            "max_position_embeddings rms_norm_eps hidden_act tie_word_embeddings").split()
    written = {key: written[key] for key in keys} | {
        "architectures": ["BailingMoeV2ForCausalLM"], "model_type": "bailing_moe", "num_experts": 8, "num_shared_experts": 2,
        "partial_rotary_factor": 0.5, "rope_theta": 600000, "rope_scaling": None, "use_bias": False, "use_qkv_bias": False,
        "use_qk_norm": True, "score_function": "sigmoid", "moe_router_enable_expert_bias": True, "router_dtype": "fp32"}
if NAME == "afmoe":  # what the hub's files say beside it
    written |= {"score_func": "sigmoid", "route_norm": True, "n_group": 1, "topk_group": 1}
if NAME == "nemotron_h":  # as the hub has it
    kinds = {"linear_attention": "M", "moe": "E", "full_attention": "*", "mlp": "-"}
    written["hybrid_override_pattern"] = "".join(kinds[kind] for kind in written.pop("layers_block_type"))
    written["num_hidden_layers"] = len(written["hybrid_override_pattern"])
    written["time_step_limit"] = [0.0, float("inf")]
    written["time_step_min"] = 0.001
os.makedirs(OUT, exist_ok=True)
with open(os.path.join(OUT, "config.json"), "w") as f:
    json.dump(written, f, indent=1, sort_keys=True)
    f.write("\n")
save_file(weights, os.path.join(OUT, "model.safetensors"), metadata={"format": "pt"})
save_file({k: v.contiguous() for k, v in golden.items()}, os.path.join(OUT, "golden.safetensors"))
with open(os.path.join(OUT, "golden.json"), "w") as f:
    json.dump({"model_type": NAME, "n_layers": config.num_hidden_layers, "moe_layers": moe_layers, "top_k": config.num_experts_per_tok,
               "seed": SEED, "transformers": transformers.__version__, "torch": torch.__version__, "sequences": report}, f, indent=1)
    f.write("\n")
print(json.dumps(report))
