#!/usr/bin/env python3
"""moxie beside other engines: the same GGUF files and the same work, alternately in one run.

    compare.py [NAME=]MODEL.gguf .. [--bench build/bench/moxie_bench] [--threads N] [--rounds 3]
               [--llama-bench [NAME=]PATH ..] [--llama-batched-bench [NAME=]PATH ..]
               [--results bench/RESULTS.md --plot bench/compare.svg]

Peers are the Python package llama-cpp-python (llama.cpp as a library), where this Python has it, and the programs llama-bench and
llama-batched-bench of llama.cpp or of a fork, by their paths. In each round every program runs every work once, after a warm-up;
the best of the rounds counts. llama.cpp as a library gets the very token ids that moxie_bench takes; its time for scoring is that
of computing the logits of all tokens, without the log-softmax. The peers' own defaults hold otherwise (weights repacked at load
where they do that, KV cache f16, flash attention as they choose).

The table goes to standard output, and with --results between the markers of that file. Needs nothing but Python 3.9.
"""
import argparse
import html
import json
import os
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BEGIN, END = "<!-- compare.py: begin -->", "<!-- compare.py: end -->"
MOXIE, LLAMA = "moxie", "llama.cpp"
SCORED = 512  # tokens of a scored sequence at most


def mt19937(seed, count):
    """The first numbers of std::mt19937(seed)."""
    state = [seed]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + i) & 0xFFFFFFFF)
    out = []
    while len(out) < count:
        for i in range(624):
            y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7FFFFFFF)
            state[i] = state[(i + 397) % 624] ^ y >> 1 ^ (0x9908B0DF if y & 1 else 0)
        for y in state:
            y ^= y >> 11
            y ^= y << 7 & 0x9D2C5680
            y ^= y << 15 & 0xEFC60000
            out.append((y ^ y >> 18) & 0xFFFFFFFF)
    return out[:count]


class Work:
    """One row: kind "prefill" or "decode" with n tokens of each of `batch` sequences, or "score" with n tokens in all."""

    def __init__(self, kind, n, batch=1):
        self.kind, self.n, self.batch = kind, n, batch
        self.tokens = n if kind == "score" else n * batch
        self.key = (kind, n, -(-n // SCORED) if kind == "score" else batch)  # as moxie_bench has it
        self.text = f"{kind} {n}" + (f", {batch} sequences" if batch > 1 else "")

    def ids(self, vocab):
        """As moxie_bench draws them."""
        if self.kind != "score":
            return [x % vocab for x in mt19937({"prefill": 1, "decode": 2}[self.kind], self.tokens)]
        return [x % vocab for first in range(0, self.n, SCORED) for x in mt19937(3 + first, min(SCORED, self.n - first))]


def works_of(options):
    return ([Work("prefill", n) for n in options.pp] + [Work("decode", options.tg, b) for b in sorted({1, *options.batch})] +
            [Work("score", n) for n in options.score])


# ---------------------------------------------------------------------------------------------------------------- programs


def run_json(command, what):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{what} failed: {' '.join(command)}\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout[done.stdout.index("{" if done.stdout.lstrip()[0] == "{" else "["):])


def moxie_round(options, model, works):
    report = run_json([options.bench, model, "--json", "--repeat", "1", "--pp", numbers(options.pp), "--tg", str(options.tg),
                       "--batch", numbers(options.batch), "--score", numbers(options.score)] +
                      (["--threads", str(options.threads)] if options.threads else []), "moxie_bench")
    rows = {(row["work"], row["n"], row["batch"]): row for row in report["rows"]}
    return report, {w.key: rows[w.key] for w in works if w.key in rows}


def llama_cpp_round(options, model, works):
    """This program again, in a process of its own: the model's memory goes with it."""
    speeds = run_json([sys.executable, os.path.abspath(__file__), model, "--llama-worker", "--pp", numbers(options.pp), "--tg",
                       str(options.tg), "--batch", numbers(options.batch), "--score", numbers(options.score), "--threads",
                       str(options.threads or os.cpu_count())], "llama-cpp-python")
    return {w.key: speeds[w.text] for w in works if w.text in speeds}


def llama_bench_round(path, options, model, works):
    found = {}
    threads = ["-t", str(options.threads or os.cpu_count())]
    for row in run_json([path, "-m", model, "-p", numbers(options.pp), "-n", str(options.tg), "-r", "1", "-o", "json"] + threads,
                        "llama-bench"):
        kind = "prefill" if row["n_prompt"] > 0 else "decode"
        found[(kind, row["n_prompt"] or row["n_gen"], 1)] = row["avg_ts"]
    return {w.key: found[w.key] for w in works if w.key in found}


def llama_batched_bench_round(path, options, model, works):
    batches = [w.batch for w in works if w.kind == "decode" and w.batch > 1]
    if not batches:
        return {}
    context = max(batches) * (options.tg + 16)
    done = subprocess.run([path, "-m", model, "-c", str(context), "-npp", "8", "-ntg", str(options.tg), "-npl", numbers(batches), "-t",
                           str(options.threads or os.cpu_count())], capture_output=True, text=True)
    found = {}
    for line in done.stdout.splitlines():  # | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | ..
        cells = [c.strip() for c in line.split("|")[1:-1]]
        if len(cells) >= 8 and cells[0] == "8":
            found[("decode", int(cells[1]), int(cells[2]))] = float(cells[7])
    if not found:
        raise SystemExit(f"{path} gave no table:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    return {w.key: found[w.key] for w in works if w.key in found}


# ------------------------------------------------------------------------------------------------- llama.cpp as a library


def llama_worker(options):
    """Runs every work once with llama-cpp-python and prints {work: tokens per second}."""
    import llama_cpp as llama

    quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    works = works_of(options)
    model = llama.llama_model_load_from_file(options.models[0].encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {options.models[0]}")
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    params = llama.llama_context_default_params()
    most = max(w.batch for w in works)
    params.n_seq_max = most
    params.n_ctx = max(max(w.n for w in works), most * (-(-(options.tg + 1) // 256) * 256))
    params.n_batch = params.n_ubatch = max(w.n if w.kind != "decode" else w.batch for w in works)
    params.n_batch = params.n_ubatch = min(params.n_batch, SCORED)
    params.n_threads = params.n_threads_batch = options.threads
    if hasattr(params, "kv_unified"):
        params.kv_unified = True
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp cannot make a context")
    batch = llama.llama_batch_init(params.n_batch, 0, 1)

    def decode(rows):
        """rows: (id, position, sequence, wants logits)"""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, logits
        if llama.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")
        llama.llama_synchronize(context)

    def clear():
        llama.llama_memory_clear(llama.llama_get_memory(context), True)

    def run(work, ids, steps):
        clear()
        if work.kind == "decode":
            for step in range(steps):
                decode([(ids[step * work.batch + s], step, s, 1) for s in range(work.batch)])
        else:
            for first in range(0, work.n, SCORED):
                end = min(work.n, first + SCORED)
                score = work.kind == "score"
                decode([(ids[i], i % SCORED if score else i, 0, int(score or i == work.n - 1)) for i in range(first, end)])
                if score:
                    clear()

    speeds = {}
    for work in works:
        ids = work.ids(vocab)
        run(work, ids, min(4, work.n))
        start = time.perf_counter()
        run(work, ids, work.n)
        speeds[work.text] = work.tokens / (time.perf_counter() - start)
    print(json.dumps(speeds))


# ----------------------------------------------------------------------------------------------------------------- output


def table(results):
    peers = results["peers"]
    lines = []
    for model in results["models"]:
        lines += [f"**{model['name']}** ({model['gb']:.2f} GB)", "",
                  "| work | limit | moxie | share of the limit |" + "".join(f" {p} | moxie / {p} |" for p in peers),
                  "|---|---|---|---|" + "---|---|" * len(peers)]
        for row in model["rows"]:
            line = f"| {row['work']} | {row['moxie'] / row['share']:.0f} | **{row['moxie']:.0f}** | {100 * row['share']:.0f}% |"
            for p in peers:
                speed = row["peers"].get(p)
                line += f" {speed:.0f} | {row['moxie'] / speed:.2f} |" if speed else " | |"
            lines.append(line)
        lines += ["", "Where the threads' time went, in percent:", ""]
        stages = list(model["rows"][0]["time"])
        lines += ["| work | " + " | ".join(stages) + " |", "|---|" + "---|" * len(stages)]
        lines += [f"| {row['work']} | " + " | ".join(f"{100 * row['time'][s]:.1f}" for s in stages) + " |" for row in model["rows"]]
        lines.append("")
    return "\n".join(lines)


def svg(results):
    """Bars of tokens/s over moxie's limit, one group for each work, one plot for each model."""
    names = [MOXIE] + results["peers"]
    colours = ["#2a6fbb", "#d9822b", "#5b8c5a", "#8a63a8", "#888888"]
    bar, left, right, height, foot = 22, 56, 20, 220, 64
    out, top = [], 48
    width = 0
    for model in results["models"]:
        group = max(104, len(names) * bar + 26)
        width = max(width, left + right + group * len(model["rows"]))
        title = f"{model['name']}: percent of the machine's limit"
        width = max(width, left + right + 8 * len(title))
        out.append(f'<text x="{left}" y="{top - 12}" class="t">{html.escape(title, quote=False)}</text>')
        for percent in range(0, 101, 20):
            y = top + height * (1 - percent / 100)
            out.append(f'<line x1="{left}" x2="{left + group * len(model["rows"])}" y1="{y:.1f}" y2="{y:.1f}" class="g"/>'
                       f'<text x="{left - 6}" y="{y + 4:.1f}" class="r">{percent}%</text>')
        for i, row in enumerate(model["rows"]):
            limit = row["moxie"] / row["share"]
            x = left + group * i + (group - len(names) * bar) / 2
            for j, name in enumerate(names):
                speed = row["moxie"] if name == MOXIE else row["peers"].get(name)
                if not speed:
                    continue
                h = height * min(1.0, speed / limit)
                label = f"{speed:.0f}" if name == MOXIE else f"{row['moxie'] / speed:.1f}x"
                out.append(f'<rect x="{x + j * bar:.1f}" y="{top + height - h:.1f}" width="{bar - 2}" height="{h:.1f}" '
                           f'fill="{colours[j % len(colours)]}"><title>{name}: {speed:.1f} tokens/s</title></rect>'
                           f'<text x="{x + j * bar + bar / 2 - 1:.1f}" y="{top + height - h - 4:.1f}" class="v">{label}</text>')
            middle = x + len(names) * bar / 2
            first, _, second = row["work"].partition(", ")
            out.append(f'<text x="{middle:.1f}" y="{top + height + 16}" class="w">{first}</text>'
                       f'<text x="{middle:.1f}" y="{top + height + 30}" class="w">{second}</text>')
        top += height + foot + 32
    legend = "".join(f'<rect x="{left + 150 * j}" y="{top - 56}" width="11" height="11" fill="{colours[j % len(colours)]}"/>'
                     f'<text x="{left + 150 * j + 16}" y="{top - 46}" class="l">{name}</text>' for j, name in enumerate(names))
    caption = f"{results['cpu']}, {results['threads']} threads. Over moxie's bars: tokens/s; over the others': how many times as fast moxie is."
    width = max(width, left + 150 * len(names), 660)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top - 12}" viewBox="0 0 {width} {top - 12}">'
            '<style>text{font:11px sans-serif;fill:#333}.t{font:bold 14px sans-serif}.r{text-anchor:end}.w,.v{text-anchor:middle}'
            '.v{font-size:9px}.g{stroke:#ccc}</style><rect width="100%" height="100%" fill="#fff"/>' + "\n".join(out) + "\n" + legend +
            f'<text x="{left}" y="{top - 24}" class="l">{caption}</text></svg>\n')


def write_between(path, text, begin=BEGIN, end=END):
    """Replaces what stands between the markers of a file."""
    with open(path, encoding="utf-8") as file:
        old = file.read()
    if begin not in old or end not in old:
        raise SystemExit(f"{path} lacks the lines {begin} and {end}, between which the results go")
    head, rest = old.split(begin, 1)
    with open(path, "w", encoding="utf-8") as file:
        file.write(head + begin + "\n" + text + "\n" + end + rest.split(end, 1)[1])


# ------------------------------------------------------------------------------------------------------------------- main


def numbers(values):
    return ",".join(map(str, values)) or "0"


def list_of_numbers(text):
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"numbers separated by commas are needed, got {text!r}")
    return [n for n in map(int, text.split(",")) if n > 0]


def named_program(text):
    name, _, path = text.rpartition("=")
    if not os.access(path, os.X_OK):
        raise argparse.ArgumentTypeError(f"{path} is no program")
    return name or os.path.basename(os.path.dirname(os.path.abspath(path))), path


def find_peers(options):
    """{name: [function of (options, model, works)]}"""
    peers = {}
    if not options.no_llama_cpp:
        probe = subprocess.run([sys.executable, "-c", "import llama_cpp; print(llama_cpp.__version__)"], capture_output=True, text=True)
        if probe.returncode == 0:
            peers[LLAMA] = [llama_cpp_round]
            print(f"llama.cpp: llama-cpp-python {probe.stdout.strip()}", file=sys.stderr)
    for programs, function in ((options.llama_bench, llama_bench_round), (options.llama_batched_bench, llama_batched_bench_round)):
        for name, path in programs:
            peers.setdefault(name, []).append(lambda *a, f=function, p=path: f(p, *a))
    return peers


def main():
    parser = argparse.ArgumentParser(description="moxie beside other engines, alternately in one run",
                                     epilog="see the top of this file")
    parser.add_argument("models", nargs="+", metavar="[NAME=]MODEL.gguf")
    parser.add_argument("--bench", default=os.path.join(HERE, "..", "build", "bench", "moxie_bench"), help="moxie's program")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pp", type=list_of_numbers, default=[512])
    parser.add_argument("--tg", type=int, default=32)
    parser.add_argument("--batch", type=list_of_numbers, default=[4, 16])
    parser.add_argument("--score", type=list_of_numbers, default=[512])
    parser.add_argument("--llama-bench", type=named_program, action="append", default=[], metavar="[NAME=]PATH")
    parser.add_argument("--llama-batched-bench", type=named_program, action="append", default=[], metavar="[NAME=]PATH")
    parser.add_argument("--no-llama-cpp", action="store_true", help="leave the Python package out")
    parser.add_argument("--results", help="file with markers between which the table goes")
    parser.add_argument("--plot", help="SVG file to write")
    parser.add_argument("--llama-worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.llama_worker:
        return llama_worker(options)
    if not os.access(options.bench, os.X_OK):
        raise SystemExit(f"{options.bench} is no program; build moxie's benchmarks (cmake --build build), or name it with --bench")

    peers = find_peers(options)
    if not peers:
        print("No other engine was found, so moxie runs alone. To compare: pip install llama-cpp-python (builds llama.cpp), or\n"
              "--llama-bench PATH and --llama-batched-bench PATH of a build of llama.cpp or of a fork.", file=sys.stderr)
    works = works_of(options)
    results = {"peers": list(peers), "models": []}
    for model in options.models:
        name, _, path = model.rpartition("=")
        best, speeds = {}, {name: {} for name in peers}
        for i in range(options.rounds):
            print(f"{os.path.basename(path)}: round {i + 1} of {options.rounds}", file=sys.stderr)
            report, rows = moxie_round(options, path, works)
            for key, row in rows.items():
                if key not in best or row["tokens_per_s"] > best[key]["tokens_per_s"]:
                    best[key] = row
            for peer, functions in peers.items():
                for function in functions:
                    for key, speed in function(options, path, works).items():
                        speeds[peer][key] = max(speed, speeds[peer].get(key, 0.0))
        results.update(cpu=report["cpu"], threads=report["threads"], arch=report["arch"])
        results["models"].append({
            "name": name or os.path.splitext(os.path.basename(path))[0],
            "gb": os.path.getsize(path) * 1e-9,
            "rows": [{"work": w.text, "moxie": best[w.key]["tokens_per_s"], "share": best[w.key]["share"], "time": best[w.key]["time"],
                      "peers": {peer: speeds[peer][w.key] for peer in peers if w.key in speeds[peer]}}
                     for w in works if w.key in best],
        })
        results.setdefault("limits", []).extend((row["peak_gops"], row["stream_gbs"]) for row in best.values())
    peaks, streams = zip(*results["limits"])
    text = (f"{results['cpu']}, kernels {results['arch']}, {results['threads']} threads, {time.strftime('%Y-%m-%d')}; int8 peak "
            f"{max(peaks):.0f} GOP/s, stream read {min(streams):.0f} to {max(streams):.0f} GB/s around the runs. Tokens/s, best of "
            f"{options.rounds} alternating rounds.\n\n" + table(results))
    print(text)
    if options.plot:
        with open(options.plot, "w", encoding="utf-8") as file:
            file.write(svg(results))
    if options.results:
        write_between(options.results, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
