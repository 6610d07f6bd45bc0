#!/bin/sh
# Trains two steps with TRL on rollouts of moxie, and compares moxie's logprobs with those of transformers.
# Usage: trl_rollout.sh MOXIE_PROGRAM SOURCE_FOLDER. Skipped (77) where trl or the model is missing; MOXIE_PYTHON names another interpreter.
moxie=$1 source=$2 python=${MOXIE_PYTHON:-python3}
model=${MOXIE_SHARED:-$source/../shared}/trained/tiny-r1
if ! "$python" -c "import trl, torch" 2>/dev/null; then
  echo "skipped: $python has no trl; pip install trl, or name a Python that has it in MOXIE_PYTHON"
  exit 77
fi
if [ ! -f "$model/model.safetensors" ]; then
  echo "skipped: no $model; set MOXIE_SHARED"
  exit 77
fi
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
export HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=passive

"$python" "$source/examples/trl_rollout.py" --moxie "$moxie" --model "$model" --prompts "$source/examples/data/tiny-r1-train.jsonl" --steps 2 --out "$folder/out" \
  > "$folder/log" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
grep '"reward"' "$folder/log"
[ "$(grep -c '"reward"' "$folder/log")" = 2 ] || exit 1

PYTHONPATH="$source/examples" "$python" - "$moxie" "$model" <<'PYTHON'
import sys, types
import torch, transformers
from trl_rollout import moxie_rollout

transformers.utils.logging.disable_progress_bar()
moxie, folder = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
args = types.SimpleNamespace(max_completion_length=32, temperature=1.3, top_p=1.0, top_k=None, min_p=None, repetition_penalty=1.0)
chat = [{"role": "user", "content": "What is 12*7-5?"}]
lines = moxie_rollout(moxie, folder, [chat] * 3 + ["What is"] * 3 + [chat] * 2, args, seed=1)
assert [line["prompt"] for line in lines] == [chat] * 3 + ["What is"] * 3 + [chat] * 2
assert lines[0]["completion_ids"] == lines[6]["completion_ids"]  # the same prompt at the same place, in another group
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
prompt_ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
assert lines[0]["prompt_ids"] == prompt_ids, (lines[0]["prompt_ids"], prompt_ids)
worst = 0.0
for line in lines:
    ids = torch.tensor([line["prompt_ids"] + line["completion_ids"]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0, :-1] / args.temperature, dim=-1)
    own = logprobs.gather(1, ids[0, 1:, None])[len(line["prompt_ids"]) - 1 :, 0]
    worst = max(worst, (own - torch.tensor(line["logprobs"])).abs().max().item())
print(f"largest difference from transformers' logprobs: {worst:.1e}")
assert worst < 1e-3
PYTHON
