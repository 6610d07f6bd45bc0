#!/usr/bin/env python3
"""Writes qwen3_5_moe/: a small random Qwen3.5-MoE model in the form of the hub's checkpoints (a model for text and images, of which
only the text model is there) and what transformers computes from it in float32.

    pip install torch transformers safetensors
    python make_qwen3_5_moe.py
"""
import json
import os

import torch
import transformers
from safetensors.torch import save_file
from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

SEED, LENGTHS, GREEDY = 7, (1, 17, 70), 24
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "qwen3_5_moe")

config = Qwen3_5MoeTextConfig(
    vocab_size=320, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    max_position_embeddings=4096, rms_norm_eps=1e-3, moe_intermediate_size=32, shared_expert_intermediate_size=48,
    num_experts_per_tok=3, num_experts=8, linear_conv_kernel_dim=4, linear_key_head_dim=16, linear_value_head_dim=24,
    linear_num_key_heads=2, linear_num_value_heads=6,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
                     "mrope_interleaved": True, "mrope_section": [2, 1, 1]})
config._attn_implementation = "eager"
config._experts_implementation = "eager"

torch.manual_seed(SEED)
model = Qwen3_5MoeForCausalLM(config).eval().float()
with torch.no_grad():
    for name, p in model.named_parameters():
        if name.endswith("A_log"):
            p.copy_(torch.empty_like(p).uniform_(0.1, 4.0).log())
        elif name.endswith("dt_bias"):
            p.copy_(torch.empty_like(p).uniform_(-2.0, 1.0))
        elif "norm" in name:
            p.copy_((1.0 if "linear_attn.norm" in name else 0.0) + 0.2 * torch.randn_like(p))
        elif "conv1d" in name:
            p.copy_(0.5 * torch.randn_like(p))
        elif "mlp.gate.weight" in name or "shared_expert_gate" in name:
            p.copy_(0.4 * torch.randn_like(p))
        elif "embed_tokens" in name or "lm_head" in name:
            p.copy_((1.0 if "embed" in name else 0.25) * torch.randn_like(p))
        else:
            p.copy_(torch.randn_like(p) / p.shape[-1] ** 0.5)
        p.copy_(p.to(torch.bfloat16).float())

gates = [layer.mlp.gate for layer in model.model.layers]
seen = []
for gate in gates:
    gate.register_forward_hook(lambda _, __, out: seen.append(out))


def run(ids):
    """Logits, final hidden rows, and of each layer the router's logits, weights and ids."""
    seen.clear()
    with torch.no_grad():
        out = model.model(input_ids=torch.tensor([ids]))
        hidden = out.last_hidden_state[0]
        return model.lm_head(hidden), hidden, list(seen)


def router_margin(routes):
    margin = 1.0
    for logits, _, _ in routes:
        top = logits.softmax(-1).topk(config.num_experts_per_tok + 1, dim=-1).values
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
    name = name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name
    weights[name] = p.to(torch.bfloat16).contiguous()
weights["model.visual.patch_embed.proj.weight"] = torch.zeros(4, 4, dtype=torch.bfloat16)  # what the text model does not use
weights["mtp.norm.weight"] = torch.zeros(64, dtype=torch.bfloat16)

text = config.to_dict()
text["model_type"] = "qwen3_5_moe_text"
os.makedirs(OUT, exist_ok=True)
with open(os.path.join(OUT, "config.json"), "w") as f:
    json.dump({"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe", "text_config": text,
               "tie_word_embeddings": False, "vision_config": {"model_type": "qwen3_5_moe"}}, f, indent=1, sort_keys=True)
    f.write("\n")
save_file(weights, os.path.join(OUT, "model.safetensors"), metadata={"format": "pt"})
save_file({k: v.contiguous() for k, v in golden.items()}, os.path.join(OUT, "golden.safetensors"))
with open(os.path.join(OUT, "golden.json"), "w") as f:
    json.dump({"model_type": "qwen3_5_moe", "n_layers": 4, "moe_layers": [0, 1, 2, 3], "top_k": config.num_experts_per_tok,
               "seed": SEED, "transformers": transformers.__version__, "torch": torch.__version__, "sequences": report}, f, indent=1)
    f.write("\n")
print(json.dumps(report))
