"""Log-probabilities of token ids under a model with an adapter that PEFT loads: logprobs_with_peft.py MODEL ADAPTER TEMPERATURE ID ID ..; one number a line."""
import sys
import peft, torch, transformers

model, adapter, temperature = sys.argv[1], sys.argv[2], float(sys.argv[3])
ids = torch.tensor([[int(id) for id in sys.argv[4:]]])
policy = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter)
with torch.no_grad():
    logprobs = (policy(ids).logits[0, :-1].double() / temperature).log_softmax(-1)
for logprob in logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist():
    print(logprob)
