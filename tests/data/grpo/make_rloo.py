"""Leave-one-out advantages as TRL computes them: python make_rloo.py > rloo.json

Runs the statements of RLOOTrainer._generate_and_score_completions, from the rewards of the functions to the metrics, as they stand in TRL's source, in float64.
"""
import ast, inspect, itertools, json, math, textwrap, types

import torch
import trl
from trl.trainer import rloo_trainer

source = textwrap.dedent(inspect.getsource(rloo_trainer.RLOOTrainer._generate_and_score_completions))
body = ast.parse(source).body[0].body
begin = next(i for i, s in enumerate(body) if isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == "rewards_per_func") + 1
end = next(i for i, s in enumerate(body) if "self._logs['prompt']" in ast.unparse(s))
statements = [s for s in body[begin:end] if not isinstance(s, ast.Assign) or ast.unparse(s.targets[0]) != "process_slice"]
code = compile(ast.Module(statements, []), "rloo_trainer.py", "exec")


def run(rewards, weights, group, clip, normalize, beta, kl):
    metrics = {}
    trainer = types.SimpleNamespace(
        num_generations=group, num_generations_eval=group, reward_weights=torch.tensor(weights, dtype=torch.float64), reward_clip_range=clip, beta=beta,
        normalize_advantages=normalize, reward_func_names=[f"f{k}" for k in range(rewards.shape[1])],
        accelerator=types.SimpleNamespace(reduce=lambda x, reduction: x), _metrics={"train": __import__("collections").defaultdict(list)})
    scope = dict(vars(rloo_trainer), self=trainer, rewards_per_func=rewards, mode="train", device="cpu", gather=lambda x: x, process_slice=slice(None),
                 old_per_token_logps=kl, ref_per_token_logps=torch.zeros_like(kl), completion_mask=torch.ones_like(kl))
    exec(code, scope)
    for name, values in trainer._metrics["train"].items():
        metrics[name] = values[-1]
    return scope["advantages"].tolist(), metrics


def plain(x):
    return None if isinstance(x, float) and math.isnan(x) else x


torch.set_default_dtype(torch.float64)  # TRL divides counts in the default type
torch.manual_seed(5)
cases = []
for group, functions, absent in itertools.product((2, 4, 8), (1, 3), (0.0, 0.3)):
    rewards = torch.round(torch.randn(3 * group, functions, dtype=torch.float64) * 8) / 8
    rewards[torch.rand_like(rewards) < absent] = float("nan")
    rewards[:group] = rewards[:1].clone() if not absent else rewards[:group]  # a group of equal rewards
    weights = [1.0] if functions == 1 else [1.0, 0.5, -0.25]
    kl = torch.round(torch.randn(3 * group, 5, dtype=torch.float64) * 64) / 64
    for clip, normalize, beta in ((None, False, 0.0), (None, True, 0.0), ((-0.75, 1.0), False, 0.0), (None, False, 0.05), ((-1.0, 0.5), True, 0.5)):
        advantages, metrics = run(rewards, weights, group, clip, normalize, beta, kl)
        cases.append({"num_generations": group, "rewards": [[plain(x) for x in row] for row in rewards.tolist()], "reward_weights": weights,
                      "reward_clip_range": clip, "normalize_advantages": normalize, "beta": beta, "kl": kl.sum(1).tolist(),
                      "advantages": advantages, "metrics": {k: plain(v) for k, v in metrics.items() if k != "kl"}})
print("[" + ",\n ".join(json.dumps(c, separators=(",", ":")) for c in cases) + "]")
