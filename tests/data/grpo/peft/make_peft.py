"""Adapters saved by PEFT on small models, with the logits that PEFT gives: make_peft.py MODELS OUT [CASE ..], MODELS being the shared folder of
models; those that are not there are taken from tests/data/models."""
import json, pathlib, sys
import peft, peft.utils.transformers_weight_conversion, torch, transformers
from safetensors.torch import save_file

models, out = map(pathlib.Path, sys.argv[1:3])
attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
latent = ["q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
networks = ["gate_proj", "up_proj", "down_proj"]
experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
cases = {
    "mixtral": dict(r=1, lora_alpha=3, target_modules=attention, target_parameters=experts + ["mlp.gate.weight"]),
    "qwen2_moe": dict(r=2, lora_alpha=3, use_rslora=True, target_modules=attention + networks + ["shared_expert_gate"]),
    "qwen3_moe": dict(r=1, lora_alpha=1.5, target_modules=r".*self_attn\.[qkvo]_proj|lm_head", target_parameters=experts + ["mlp.gate.weight"],
                      rank_pattern={r"^model\.layers\.[01]\.self_attn\.[qk]_proj": 3}, alpha_pattern={r"layers\.\d+\.self_attn\.v_proj": 4}),
    "olmoe_clip": dict(r=2, lora_alpha=3, target_modules=attention, target_parameters=experts + ["mlp.gate.weight"]),
    "deepseek_v3": dict(r=1, lora_alpha=2.5, target_modules=latent + networks + ["lm_head"], target_parameters=experts + ["mlp.gate.weight"],
                        rank_pattern={"self_attn.kv_b_proj": 17, "layers.1.self_attn.o_proj": 3}, alpha_pattern={"kv_b_proj": 23.5}),
    "qwen3_next": dict(r=2, lora_alpha=3, target_modules=attention + ["in_proj_qkvz", "in_proj_ba", "out_proj", "shared_expert_gate"]),
    "qwen3_5_moe": dict(r=2, lora_alpha=3, target_modules=attention + ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"]),
    "nemotron_h": dict(r=2, lora_alpha=3, target_modules=attention + ["in_proj", "up_proj", "down_proj"],
                       target_parameters=["mixer.experts.up_proj", "mixer.experts.down_proj", "mixer.gate.weight"]),
    "nemotron_h_latent": dict(r=2, lora_alpha=3, target_modules=["fc1_latent_proj", "fc2_latent_proj"],
                              target_parameters=["mixer.experts.up_proj", "mixer.experts.down_proj"]),
    "afmoe": dict(r=2, lora_alpha=3, target_parameters=experts,
                  target_modules=r".*(self_attn\.[qkvo]_proj|self_attn\.gate_proj|(mlp|shared_experts)\.(gate|up|down)_proj|router\.gate)"),
    "granitemoehybrid": dict(r=2, lora_alpha=3, target_modules=attention + ["in_proj", "out_proj"]),
    "lfm2_moe": dict(r=2, lora_alpha=3, target_modules=["q_proj", "k_proj", "v_proj", "in_proj", "out_proj", "w1", "w2", "w3"]),
}
only = sys.argv[3:] or list(cases)
conversion = peft.utils.transformers_weight_conversion
convert = conversion.convert_peft_config_for_transformers
for name, options in cases.items():
    if name not in only:
        continue
    # "gate_proj" of these is the dense and shared networks', and not turned into the experts' gate_up_proj
    conversion.convert_peft_config_for_transformers = (lambda *_, **__: None) if name in ("deepseek_v3", "afmoe") else convert
    torch.manual_seed(1)
    folder = models / name if (models / name).exists() else pathlib.Path(__file__).resolve().parents[2] / "models" / name
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base.name_or_path = f"models/{name}"  # what adapter_config.json names as the base model
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            bound = 0.3 if "lora_B" in parameter_name else 0.5 * parameter.shape[1] ** -0.5
            parameter.data = (torch.randn_like(parameter) * bound).to(torch.bfloat16).float()
    ids = torch.randint(0, base.config.vocab_size, (1, 12))
    with torch.no_grad():
        logits = model(ids).logits[0]
    model.half() if name == "mixtral" else model.bfloat16()
    model.save_pretrained(out / name, save_embedding_layers=False)
    (out / name / "README.md").unlink(missing_ok=True)
    save_file({"ids": ids[0].to(torch.int32), "logits": logits.contiguous()}, out / name / "logits.safetensors")
