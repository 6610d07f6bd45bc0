#!/usr/bin/env python3
"""Instructions that the int8 kernels take for a token and a block of 32 inputs x 16 outputs, counted in compiled code.

    instructions.py [--compiler g++] [--mca llvm-mca-14] [--results bench/RESULTS.md]

For each format and architecture the hot loop is taken from the object file: of the tiles the largest (over staged blocks where a
format has such, and the same in registers where the CPU decides which it is; there the unpacking is shared by its tokens), and the one for a single token. A block is 512 multiply-adds:
8 vpdpbusd on 512 bits, 16 vpmaddubsw or 32 vpmaddwd (on int16) on 256. llvm-mca, where it is installed, gives the cycles of the loop on Zen 3, as if all data were in the first-level cache and no
branch missed; beside it stand the cycles of the best sequence in registers (bench/peak.hpp), as roofline measures them.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
BEGIN, END = "<!-- instructions.py: begin -->", "<!-- instructions.py: end -->"
FORMATS = ["Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "MXFP4", "NVFP4", "IQ4_XS", "IQ3_XXS", "Q3_K", "IQ2_XXS", "Q2_K", "IQ1_S"]
AVX2 = "-mavx2 -mfma -mf16c"
ARCHES = {
    "avx2": ("Avx2", AVX2 + " -mtune=znver3"),
    "avx512": ("Avx512", "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mtune=znver3 " + AVX2),
}
# Cycles that the best AVX2 sequence takes for the 1024 operations of a block and token: what roofline gives on a core of Zen 4 with
# 3.68 GHz, 348, 326, 288 and 191 GOP/s; the multiplications alone, 2 in a cycle, would take 9, 10, 12 and 16.
BEST = {"Q4_0": 10.8, "Q4_K": 10.8, "Q5_K": 11.6, "Q6_K": 13.1, "Q8_0": 19.7, "MXFP4": 10.8, "IQ4_XS": 19.7, "Q3_K": 10.8, "Q2_K": 10.8,
        "NVFP4": 10.8, "IQ3_XXS": 19.7, "IQ2_XXS": 19.7, "IQ1_S": 10.8}
MULTIPLY = re.compile(r"vpdpbusd|vpmaddubsw|vpmaddwd|vpdpwssd|vpmulld|vpmullw")
CLASSES = [("multiply", MULTIPLY), ("sign, abs", re.compile(r"vpsign|vpabs")), ("add", re.compile(r"vpadd|vpsub")),
           ("broadcast", re.compile(r"vpbroadcast|vbroadcast")),
           ("float", re.compile(r"vfmadd|vmulp|vaddp|vcvt")),
           ("load, store, move", re.compile(r"vmov|vpmovzx|vpmovsx")), ("unpack", re.compile(r"vps[rl]l|vpsra|vpand|vpor|vpxor|vpternlog|vpshuf|vpunpck|vperm|vpack|vpblend|vinsert|vextract")),
           ("prefetch", re.compile(r"prefetch"))]


def functions(text):
    """{demangled name: [(address, instruction)]} of a disassembly."""
    found, name = {}, None
    for line in text.splitlines():
        if match := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            name = match[1]
            found[name] = []
        elif name and (match := re.match(r"\s+([0-9a-f]+):\s+(.*)", line)):
            found[name].append((int(match[1], 16), match[2].split("#")[0].split("<")[0].strip()))
    return found


def hot_loop(body):
    """The smallest loop with nearly all multiplications of the function's busiest one."""
    loops = []
    for at, (address, text) in enumerate(body):
        match = re.match(r"j\w+\s+([0-9a-f]+)", text)
        if match and int(match[1], 16) <= address:
            start = int(match[1], 16)
            inside = [t for a, t in body[:at + 1] if a >= start]
            if any(t.startswith("ret") for t in inside):  # not a loop: the jump comes back from cold code
                continue
            loops.append((sum(1 for t in inside if MULTIPLY.match(t)), -len(inside), inside))
    if not loops:
        return []
    most = max(n for n, _, _ in loops)
    return max((l for l in loops if l[0] >= 0.9 * most), key=lambda l: l[1])[2]


def cycles(loop, mca):
    text = "\n".join(t for t in loop if not re.match(r"j|call|ret|nop", t)) + "\n"
    done = subprocess.run([mca, "-mtriple=x86_64", "-mcpu=znver3", "-iterations=200"], input=text, capture_output=True, text=True)
    match = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    return int(match[1]) / 200 if match else None


def blocks_of(loop, arch, fmt):
    """Blocks times tokens that a loop does."""
    count = lambda name: sum(1 for t in loop if t.startswith(name))
    if arch == "avx512":
        return count("vpdpbusd") / 8
    bytes_ = count("vpmaddubsw")
    return bytes_ / 16 if bytes_ else count("vpmaddwd") / 32


def row(fmt, form, loop, arch, mca):
    blocks = blocks_of(loop, arch, fmt)
    if not blocks:
        return None
    cells, rest = [], [t for t in loop]
    for _, pattern in CLASSES:
        cells.append(sum(1 for t in rest if pattern.match(t)) / blocks)
        rest = [t for t in rest if not pattern.match(t)]
    line = f"| {fmt} | {form} | {len(loop) / blocks:.1f} |" + "".join(f" {c:.1f} |" for c in cells) + f" {len(rest) / blocks:.1f} |"
    if arch == "avx2":
        best = BEST[fmt]
        taken = cycles(loop, mca) if mca else None
        line += f" {taken / blocks:.1f} | {best:.1f} | {100 * best * blocks / taken:.0f}% |" if taken else f" | {best:.1f} | |"
    return line


def compiled(compiler, tag, flags, fmt):
    with tempfile.TemporaryDirectory() as folder:
        source, obj = os.path.join(folder, "k.cpp"), os.path.join(folder, "k.o")
        with open(source, "w", encoding="utf-8") as file:
            file.write("#include <moxie/kernels/kernels.hpp>\ntemplate void moxie::kernels::matmul_int8<"
                       f"moxie::kernels::{tag}, moxie::{fmt}>(const moxie::kernels::MatmulArgs&) noexcept;\n")
        subprocess.run([compiler, "-std=c++20", "-O2", "-ffp-contract=off", "-w", *flags.split(), "-I", os.path.join(HERE, "..", "include"),
                        "-c", source, "-o", obj], check=True)
        return functions(subprocess.run(["objdump", "-d", "-C", "--no-show-raw-insn", obj], check=True, capture_output=True, text=True).stdout)


def report(options):
    lines = []
    for arch, (tag, flags) in ARCHES.items():
        lines += [f"**{arch}**", "", "| format | loop | instructions | " + " | ".join(n for n, _ in CLASSES) + " | other |" +
                  (" cycles, Zen 3 | best | share |" if arch == "avx2" else ""),
                  "|" + "---|" * (len(CLASSES) + (7 if arch == "avx2" else 4))]
        for fmt in FORMATS:
            loops = {}  # (unpacks in registers, tokens, panels; 0 of staged ones): loop
            for name, body in compiled(options.compiler, tag, flags, fmt).items():
                if match := re.search(rf"run_direct<.*moxie::{fmt}, (\d+), (\d+)>\(", name):
                    loops[(True, int(match[1]), int(match[2]))] = hot_loop(body)
                elif match := re.search(r"run_tile<.*, (\d+)>\(", name):
                    loops[(False, int(match[1]), 0)] = hot_loop(body)
            largest = max(loops, key=lambda key: (not key[0], *key[1:]))  # over staged blocks, where there are such
            together = largest[2] or max(panels for _, _, panels in loops)  # staged tiles take as many as any
            forms = [(f"tile of {largest[1]}" + (f" x {together} panels" if together > 1 else "") + ("" if largest[0] else ", staged"), largest),
                     ("one token", (True, 1, 1))]
            if not largest[0] and together > 1:  # whether these are staged depends on the CPU
                forms.insert(0, (f"tile of {largest[1]} x {together} panels", (True, largest[1], together)))
            for form, key in forms:
                lines.append(row(fmt, form, loops[key], arch, options.mca))
        lines.append("")
    return "\n".join(line for line in lines if line is not None)


def main():
    parser = argparse.ArgumentParser(description="instructions of the int8 kernels for a token and a block")
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--mca", default="llvm-mca-14")
    parser.add_argument("--results")
    options = parser.parse_args()
    if subprocess.run(["sh", "-c", f"command -v {options.mca}"], capture_output=True).returncode != 0:
        print(f"{options.mca} is not installed (package llvm-14): no cycles", file=sys.stderr)
        options.mca = None
    text = report(options)
    print(text)
    if options.results:
        sys.path.insert(0, HERE)
        import compare
        compare.write_between(options.results, text, BEGIN, END)


if __name__ == "__main__":
    sys.exit(main())
