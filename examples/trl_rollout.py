#!/usr/bin/env python3
"""GRPO with TRL, rollouts by moxie: TRL's GRPOTrainer calls `rollout_func`, which runs `moxie rollout` on the weights of that step.

    python3 trl_rollout.py --moxie build/examples/moxie --model ../shared/trained/tiny-r1 --prompts examples/data/tiny-r1-train.jsonl

needs: pip install trl. What moxie gives has TRL's names, so the function is short: completions with the exact log-probabilities of their
tokens under the policy at the sampling temperature. rollout_func is described at huggingface.co/docs/trl/grpo_trainer.
"""

import argparse
import itertools
import json
import subprocess
import tempfile
from pathlib import Path


def moxie_rollout(moxie, folder, prompts, args, seed):
    """Completions of `prompts` (texts or lists of messages) by the model in `folder`, in their order.

    TRL repeats a prompt for each completion of its group; the repetitions become one group, whose prompt is run once.
    """
    lines = []
    for size, group in itertools.groupby([(prompt, list(same)) for prompt, same in itertools.groupby(prompts)], key=lambda g: len(g[1])):
        command = [moxie, "rollout", folder, "-", "--group", size, "-n", args.max_completion_length, "--temperature", args.temperature,
                   "--top-p", args.top_p, "--top-k", max(args.top_k or 0, 0), "--min-p", args.min_p or 0, "--repeat-penalty", args.repetition_penalty,
                   "--seed", seed, "--activations", "f32", "--kv", "f32"]
        text = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt, _ in group)
        done = subprocess.run([str(part) for part in command], input=text, text=True, stdout=subprocess.PIPE, check=True)
        lines += [json.loads(line) for line in done.stdout.splitlines()]
    return lines


def make_rollout_func(moxie):
    def rollout_func(prompts, trainer):
        with tempfile.TemporaryDirectory() as folder:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
            trainer.processing_class.save_pretrained(folder)
            lines = moxie_rollout(moxie, folder, prompts, trainer.args, seed=trainer.state.global_step)
        return {key: [line[key] for line in lines] for key in ("prompt_ids", "completion_ids", "logprobs")}

    return rollout_func


def reward(completions, answer, **_):
    """1 when the text after the thinking is the answer."""
    return [float(completion[0]["content"].split("</think>")[-1].strip() == right) for completion, right in zip(completions, answer)]


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--moxie", default="moxie", help="the program")
    options.add_argument("--model", required=True, help="a Hugging Face folder of a model that moxie knows")
    options.add_argument("--prompts", required=True, help='JSON lines {"question": .., "answer": ..}')
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--out", default=tempfile.gettempdir() + "/moxie-trl")
    options = options.parse_args()

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    questions = [json.loads(line) for line in Path(options.prompts).read_text().splitlines()]
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": q["question"]}], "answer": q["answer"]} for q in questions])
    config = GRPOConfig(output_dir=options.out, max_steps=options.steps, per_device_train_batch_size=16, num_generations=8, max_completion_length=48,
                        temperature=1.2, learning_rate=1e-5, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False)
    trainer = GRPOTrainer(model=AutoModelForCausalLM.from_pretrained(options.model, dtype="float32"),
                          processing_class=AutoTokenizer.from_pretrained(options.model), reward_funcs=reward, args=config,
                          train_dataset=dataset, rollout_func=make_rollout_func(options.moxie))
    trainer.train()
    for entry in trainer.state.log_history:
        if "reward" in entry:
            print(json.dumps({key: entry[key] for key in ("step", "reward", "loss") if key in entry}))


if __name__ == "__main__":
    main()
