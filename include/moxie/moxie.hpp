#pragma once
// moxie: Mixture-of-Experts language models on CPUs. One include for applications: everything but the optional backends.
//
//   moxie::Model model = moxie::Model::load("model.gguf");
//   moxie::Session session(model);
//   session.feed(model.chat({{"user", "What is 12*7-5?"}}));
//   for (std::string_view piece : session.generate({.temperature = 0.6f})) std::cout << piece << std::flush;

#include <moxie/generate/batch.hpp>
#include <moxie/generate/model.hpp>
#include <moxie/generate/quantize_model.hpp>
#include <moxie/generate/session.hpp>
#include <moxie/grpo/adapter_trainer.hpp>
#include <moxie/grpo/advantages.hpp>
#include <moxie/grpo/importance.hpp>
#include <moxie/grpo/leave_one_out.hpp>
#include <moxie/grpo/load_balancing.hpp>
#include <moxie/grpo/logprob_gradients.hpp>
#include <moxie/grpo/logprobs.hpp>
#include <moxie/grpo/losses.hpp>
#include <moxie/grpo/rollout.hpp>
#include <moxie/grpo/routes_file.hpp>
#include <moxie/grpo/training_state.hpp>
#include <moxie/io/peft.hpp>
#include <moxie/moe/moe_layer.hpp>
