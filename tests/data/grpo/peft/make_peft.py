"""Adapters saved by PEFT on small models, with the logits that PEFT gives: make_peft.py MODELS OUT [CASE ..], MODELS being the shared folder of
models; those that are not there are taken from tests/data/models."""
import json, pathlib, sys
import peft, peft.utils.transformers_weight_conversion, torch, transformers
from safetensors.torch import load_file, save_file

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
    "bailing_moe_v2": dict(r=2, lora_alpha=3, target_modules=attention),
    "afmoe": dict(r=2, lora_alpha=3, target_parameters=experts,
                  target_modules=r".*(self_attn\.[qkvo]_proj|self_attn\.gate_proj|(mlp|shared_experts)\.(gate|up|down)_proj|router\.gate)"),
    "granitemoehybrid": dict(r=2, lora_alpha=3, target_modules=attention + ["in_proj", "out_proj"]),
    "lfm2_moe": dict(r=2, lora_alpha=3, target_modules=["q_proj", "k_proj", "v_proj", "in_proj", "out_proj", "w1", "w2", "w3"]),
}


def ling(folder):
    """bailing_moe_v2 as GLM-4.5, which transformers has and whose layers are the same."""
    hub = json.loads((folder / "config.json").read_text())
    config = transformers.Glm4MoeConfig(
        **{key: value for key, value in hub.items() if key not in ("architectures", "model_type", "rope_theta", "rope_scaling", "partial_rotary_factor")},
        n_routed_experts=hub["num_experts"], n_shared_experts=hub["num_shared_experts"], attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": hub["rope_theta"], "partial_rotary_factor": hub["partial_rotary_factor"]})
    model, weights = transformers.Glm4MoeForCausalLM(config).float(), {}
    rows = [n * hub["head_dim"] for n in (hub["num_attention_heads"], hub["num_key_value_heads"], hub["num_key_value_heads"])]
    for name, weight in load_file(folder / "model.safetensors").items():
        if "query_key_value" in name:
            for part, w in zip("qkv", weight.split(rows)):
                weights[name.replace("attention.query_key_value", f"self_attn.{part}_proj")] = w
        else:
            for ours, theirs in (("word_embeddings", "embed_tokens"), ("attention.dense", "self_attn.o_proj"), ("expert_bias", "e_score_correction_bias"),
                                 ("attention.query_layernorm", "self_attn.q_norm"), ("attention.key_layernorm", "self_attn.k_norm")):
                name = name.replace(ours, theirs)
            weights[name] = weight
    state = {name: value for name, value in model.state_dict().items()}
    for name in state:
        if name in weights:
            state[name] = weights[name].float()
        else:  # the experts, stacked
            stem, parts = name.rsplit(".", 1)[0], ["gate_proj", "up_proj"] if "gate_up" in name else ["down_proj"]
            state[name] = torch.stack([torch.cat([weights[f"{stem}.{e}.{part}.weight"] for part in parts]) for e in range(hub["num_experts"])]).float()
    model.load_state_dict(state)
    return model


def as_ling(folder):
    """The adapter of that with the names of bailing_moe_v2, whose q, k and v are one matrix."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in list(tensors):
        if "q_proj" in name:
            parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            assert "lora_B" in name or all((part == parts[0]).all() for part in parts)
            tensors[name.replace("self_attn.q_proj", "attention.query_key_value")] = parts[0] if "lora_A" in name else torch.cat(parts)
    save_file({name.replace("self_attn.o_proj", "attention.dense"): tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = ["query_key_value", "dense"]
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


only = sys.argv[3:] or list(cases)
conversion = peft.utils.transformers_weight_conversion
convert = conversion.convert_peft_config_for_transformers
for name, options in cases.items():
    if name not in only:
        continue
    # "gate_proj" of these is the dense and shared networks', and not turned into the experts' gate_up_proj
    conversion.convert_peft_config_for_transformers = (lambda *_, **__: None) if name in ("deepseek_v3", "afmoe") else convert
    torch.manual_seed(2 if name == "bailing_moe_v2" else 1)  # with 1 a choice of experts is so close that BF16 turns it
    folder = models / name if (models / name).exists() else pathlib.Path(__file__).resolve().parents[2] / "models" / name
    base = ling(folder) if name == "bailing_moe_v2" else transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base.name_or_path = f"models/{name}"  # what adapter_config.json names as the base model
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            bound = 0.3 if "lora_B" in parameter_name else 0.5 * parameter.shape[1] ** -0.5
            parameter.data = (torch.randn_like(parameter) * bound).to(torch.bfloat16).float()
    if name == "bailing_moe_v2":
        parameters = dict(model.named_parameters())
        for parameter_name, parameter in parameters.items():
            if "lora_A" in parameter_name and ("k_proj" in parameter_name or "v_proj" in parameter_name):
                parameter.data = parameters[parameter_name.replace("k_proj", "q_proj").replace("v_proj", "q_proj")].data.clone()
    ids = torch.randint(0, base.config.vocab_size, (1, 12))
    with torch.no_grad():
        logits = model(ids).logits[0]
    model.half() if name == "mixtral" else model.bfloat16()
    model.save_pretrained(out / name, save_embedding_layers=False)
    (out / name / "README.md").unlink(missing_ok=True)
    if name == "bailing_moe_v2":
        as_ling(out / name)
    save_file({"ids": ids[0].to(torch.int32), "logits": logits.contiguous()}, out / name / "logits.safetensors")
