#!/usr/bin/env python3
"""Writes a GGUF with random weights at the layer shapes of a model with recurrent layers, for benchmarks: Qwen3.5-35B-A3B (gated
delta nets) and Granite 4.0 H Small (Mamba-2), three recurrent layers before each with attention, or Nemotron 3 Nano (Mamba-2),
whose layers are one of MEM*EMEME in this order: Mamba-2, experts without a gate, attention.

    pip install numpy gguf
    python make_hybrid_gguf.py OUT.gguf [--shape qwen3.5-35b-a3b|granite-4.0-h-small|nemotron-3-nano] [--layers 4] [--type Q4_K_M|Q8_0]

Blocks are drawn in their format; weights have mean 0 and deviation 1 / sqrt(columns), the router is random, so experts are used
evenly. Rows that are no multiple of 256 become Q5_0 and Q8_0 where others are Q4_K and Q6_K, as in llama.cpp's mixes; Nemotron's
all are, but those of Mamba-2's and attention's output. llama.cpp reads the file too.
"""
import argparse

import gguf
import numpy as np

T = gguf.GGMLQuantizationType
CONV = 4

cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
cli.add_argument("out")
cli.add_argument("--shape", choices=("qwen3.5-35b-a3b", "granite-4.0-h-small", "nemotron-3-nano"), default="qwen3.5-35b-a3b")
cli.add_argument("--layers", type=int, help="4, of Nemotron 9")
cli.add_argument("--type", choices=("Q4_K_M", "Q8_0"), default="Q4_K_M")
arg = cli.parse_args()
MAMBA, NEMOTRON = arg.shape != "qwen3.5-35b-a3b", arg.shape == "nemotron-3-nano"
HIDDEN, VOCAB, EXPERTS, TOP_K, WIDTH, SHARED, HEADS, KV_HEADS, HEAD, GROUPS, V_HEADS, V_HEAD, STATE = {
    "qwen3.5-35b-a3b": (2048, 248320, 256, 8, 512, 512, 16, 2, 256, 16, 32, 128, 128),
    "granite-4.0-h-small": (4096, 100352, 72, 10, 768, 1536, 32, 8, 128, 1, 128, 64, 128),
    "nemotron-3-nano": (2688, 131072, 128, 6, 1856, 3712, 32, 2, 128, 8, 64, 64, 128)}[arg.shape]
LAYERS = arg.layers or (9 if NEMOTRON else 4)
PATTERN = ("MEM*EMEME" if NEMOTRON else "MMM*") * LAYERS  # E: experts alone, whose mixer is a layer of its own
CHANNELS = 2 * GROUPS * STATE + V_HEADS * V_HEAD
rng = np.random.Generator(np.random.SFC64(0))
Q8 = arg.type == "Q8_0"
most, more, output = (T.Q8_0,) * 3 if Q8 else (T.Q4_K, T.Q6_K, T.Q6_K)


def fitting(kind, columns):
    return kind if columns % gguf.GGML_QUANT_SIZES[kind][0] == 0 else {T.Q4_K: T.Q5_0, T.Q6_K: T.Q8_0}[kind]


def codes(n, width):
    return np.frombuffer(rng.bytes(n * width), np.uint8).reshape(n, width).copy()


def f16(values):
    return np.ascontiguousarray(values, np.float16).view(np.uint8).reshape(len(values), -1)


def blocks(kind, n, std):
    scale = lambda middle: middle * (0.75 + 0.5 * rng.random(n, np.float32))
    if kind == T.Q8_0:
        return np.hstack([f16(scale(std / 73)), codes(n, 32)])
    if kind == T.Q5_0:
        return np.hstack([f16(scale(std / 9.2)), codes(n, 20)])
    if kind == T.Q6_K:
        return np.hstack([codes(n, 192), rng.integers(40, 120, (n, 16), np.uint8), f16(scale(std / (18.5 * 80)))])
    s, d = rng.integers(24, 64, (n, 8), np.uint8), scale(std / 200)  # Q4_K, its mins as its scales
    first = s[:, :4] | (s[:, 4:] >> 4 << 6)
    return np.hstack([f16(d), f16(7.5 * d), first, first, (s[:, 4:] & 15) | (s[:, 4:] & 15) << 4, codes(n, 128)])


ARCH = "nemotron_h_moe" if NEMOTRON else "granitehybrid" if MAMBA else "qwen35moe"
w = gguf.GGUFWriter(arg.out, ARCH)
w.add_name(f"random {arg.shape}, {LAYERS} layers")
w.add_block_count(LAYERS)
w.add_context_length(32768)
w.add_embedding_length(HIDDEN)
w.add_feed_forward_length([WIDTH if PATTERN[i] == "E" else 0 for i in range(LAYERS)] if NEMOTRON else WIDTH)
w.add_head_count(HEADS)
w.add_head_count_kv([KV_HEADS if PATTERN[i] == "*" else 0 for i in range(LAYERS)] if MAMBA else KV_HEADS)
w.add_key_length(HEAD)
w.add_value_length(HEAD)
w.add_layer_norm_rms_eps(1e-6)
if NEMOTRON:
    w.add_layer_norm_eps(1e-6)
    w.add_expert_shared_count(1)
    w.add_expert_weights_norm(True)
    w.add_expert_weights_scale(2.5)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
elif MAMBA:
    w.add_embedding_scale(12.0)
    w.add_residual_scale(0.22)
    w.add_attention_scale(0.0078125)
    w.add_logit_scale(16.0)
    w.add_rope_dimension_count(HEAD)
    w.add_rope_scaling_finetuned(False)  # what llama.cpp takes as no rotation
else:
    w.add_rope_freq_base(1e7)
    w.add_rope_dimension_count(HEAD // 4)
    w.add_rope_dimension_sections([11, 11, 10, 0])
    w.add_uint32("qwen35moe.full_attention_interval", 4)
w.add_expert_count(EXPERTS)
w.add_expert_used_count(TOP_K)
w.add_expert_feed_forward_length(WIDTH)
w.add_expert_shared_feed_forward_length(SHARED)
w.add_vocab_size(VOCAB)
w.add_ssm_conv_kernel(CONV)
w.add_ssm_state_size(STATE)
w.add_ssm_group_count(GROUPS)
w.add_ssm_time_step_rank(V_HEADS)
w.add_ssm_inner_size(V_HEADS * V_HEAD)
own = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
symbols = {b: chr(b) for b in own} | {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in own)}
w.add_tokenizer_model("gpt2")
w.add_tokenizer_pre("qwen35")
w.add_token_list([symbols[b] for b in range(256)] + [f"\u0120t{i}" for i in range(256, VOCAB)])
w.add_token_types([gguf.TokenType.NORMAL] * VOCAB)
w.add_token_merges(["\u0120 t"])
w.add_bos_token_id(1)
w.add_eos_token_id(2)


def matrix(name, kind, *shape):
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    kind = fitting(kind, columns)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = blocks(kind, rows * columns // block, np.float32(columns**-0.5))
    w.add_tensor(name, data.reshape(*shape[:-1], columns // block * size), raw_dtype=kind)


def floats(name, *shape, mean=0.0, std=0.1):
    w.add_tensor(name, (mean + std * rng.standard_normal(shape, np.float32)).astype(np.float32))


matrix("token_embd.weight", most, VOCAB, HIDDEN)
matrix("output.weight", output, VOCAB, HIDDEN)
floats("output_norm.weight", HIDDEN, mean=1.0)
for i in range(LAYERS):
    at = f"blk.{i}."
    floats(at + "attn_norm.weight", HIDDEN, mean=1.0)
    if not NEMOTRON:
        floats(at + ("ffn_norm.weight" if MAMBA else "post_attention_norm.weight"), HIDDEN, mean=1.0)
    down = more if i % 2 == 0 else most  # about half of them, as in llama.cpp's mixes
    if PATTERN[i] == "M":
        if MAMBA:
            matrix(at + "ssm_in.weight", most, V_HEADS * V_HEAD + CHANNELS + V_HEADS, HIDDEN)
            floats(at + "ssm_conv1d.bias", CHANNELS)
            floats(at + "ssm_d", V_HEADS, 1, mean=1.0)
        else:
            matrix(at + "attn_qkv.weight", most, CHANNELS, HIDDEN)
            matrix(at + "attn_gate.weight", most, V_HEADS * V_HEAD, HIDDEN)
            floats(at + "ssm_beta.weight", V_HEADS, HIDDEN, std=HIDDEN**-0.5)
            floats(at + "ssm_alpha.weight", V_HEADS, HIDDEN, std=HIDDEN**-0.5)
        floats(at + "ssm_conv1d.weight", CHANNELS, CONV, std=0.5)
        floats(at + "ssm_dt.bias", V_HEADS)
        floats(at + "ssm_a", *((V_HEADS, 1) if MAMBA else (V_HEADS,)), mean=-1.5)
        floats(at + "ssm_norm.weight", *((GROUPS, V_HEADS * V_HEAD // GROUPS) if MAMBA else (V_HEAD,)), mean=1.0)
        matrix(at + "ssm_out.weight", most, HIDDEN, V_HEADS * V_HEAD)
    elif PATTERN[i] == "*":
        matrix(at + "attn_q.weight", most, (1 if MAMBA else 2) * HEADS * HEAD, HIDDEN)
        matrix(at + "attn_k.weight", most, KV_HEADS * HEAD, HIDDEN)
        matrix(at + "attn_v.weight", down, KV_HEADS * HEAD, HIDDEN)
        matrix(at + "attn_output.weight", most, HIDDEN, HEADS * HEAD)
        if not MAMBA:
            floats(at + "attn_q_norm.weight", HEAD, mean=1.0)
            floats(at + "attn_k_norm.weight", HEAD, mean=1.0)
    if NEMOTRON and PATTERN[i] != "E":
        continue
    if NEMOTRON:
        floats(at + "exp_probs_b.bias", EXPERTS, std=0.01)
    floats(at + "ffn_gate_inp.weight", EXPERTS, HIDDEN, std=HIDDEN**-0.5)
    if not MAMBA:
        floats(at + "ffn_gate_inp_shexp.weight", HIDDEN, std=HIDDEN**-0.5)
    for part, kind in (("gate", most), ("up", most), ("down", down))[NEMOTRON:]:
        shape = lambda width: (HIDDEN, width) if part == "down" else (width, HIDDEN)
        matrix(at + f"ffn_{part}_exps.weight", kind, EXPERTS, *shape(WIDTH))
        matrix(at + f"ffn_{part}_shexp.weight", kind, *shape(SHARED))
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
