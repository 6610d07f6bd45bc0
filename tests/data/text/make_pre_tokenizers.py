"""pre_tokenizers.json: the words that the tokenizers library makes of texts with the expressions of models' own tokenizers.

    pip install tokenizers==0.23.3
    python make_pre_tokenizers.py pre_tokenizers.json

The expressions are those of the models' files (tokenizer.json, or tiktoken's pattern in their Python code), under the name that
GGUF files have for them in tokenizer.ggml.pre; afmoe's are llama.cpp's, its way with digits as an expression.
"""

import json
import random
import sys

from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split

WORDS = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = {
    "kimi-k2": r"[\p{Han}]+|" + (WORDS % (SUFFIX, SUFFIX)).replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]")
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "minimax-m2": WORDS % (SUFFIX, SUFFIX) + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": WORDS % ("", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "bailingmoe": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "seed-coder": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen35": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "exaone-moe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
    "afmoe": [r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
              "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff"
              "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
              r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""],
    "hunyuan": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}

random.seed(3)
TEXTS = [
    "", " ", "a", "I'LL we've don't they'd 'tis I'M O'Neill's ROCK'N'roll", "camelCase HTTPServer aBcDe iPhone 4s McDonald",
    "12345678 3.14159 1,000,000 \u0661\u0662\u0663 \u2167 \u00bd", "x  y   z \n\n  w\r\n\r\n\t\tq  ", "a/b//c:\n/usr/bin\n// comment\r\n",
    "\u4f60\u597d\u4e16\u754c\u3002Hello\u4e16\u754cworld 3\u4e2a\u82f9\u679c\u30ab\u30bf\u30ab\u30ca\u3072\u3089\u304c\u306a\uac00\ub098",
    "\u3005\u3007\u4e00\u4e8c A\u4e2dB a\u4e2db \u4e2d's", "e\u0301a\u030a \u0928\u092e\u0938\u094d\u0924\u0947 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u01c5\u01c6",
    "!!! ?? ...\n--- #$%^&*() \U0001f680\U0001f468\u200d\U0001f469 \u2028x\u2029\u3000y\u00a0z", "int main() {\n    return x->y[0] != ~z ? 1 : 0;\n}\n",
]
POOL = "aZbC '\u2019\n\r\t  .,/-12\u0663\u4e2d\u6587\u3042\u30a2\uac00\u00e9\u0301\u00df\u0416\u0436\U0001f680\u01c5\u02b0"
TEXTS += ["".join(random.choice(POOL) for _ in range(random.randint(1, 24))) for _ in range(60)]
TEXTS += ["1234567 12 123 12345.6789 abc1234def ab 12345678901234567890", "\u0e44\u0e17\u0e22\u0e40\u0e1e\u0e25\u0e07 \u1780\u17d2\u1798 \ud55c\uad6d\uc5b4 \uff76\uff97 \uf900x",
          "one two  three four\u0301 five, six 7 eight nine/\n/ten\n\neleven"]


def splitter(patterns):
    return Sequence([Split(Regex(pattern), "isolated") for pattern in ([patterns] if isinstance(patterns, str) else patterns)])


with open(sys.argv[1], "w") as out:
    rows = {
        name: [[word for word, _ in splitter(pattern).pre_tokenize_str(text)] for text in TEXTS]
        for name, pattern in PATTERNS.items()
    }
    json.dump({"texts": TEXTS, "words": rows}, out, separators=(",", ":"))
