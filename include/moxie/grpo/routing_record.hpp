#pragma once
// RoutingRecord: the experts of a rollout's tokens, compact, to be saved with it and replayed in scoring (rollout routing replay,
// R3, arXiv 2510.11370).
//
// Ids in the order [token][MoE layer][top_k], one byte each for models of up to 256 experts, two above. Weights are not kept: a
// replay computes them anew from its own router logits. As text it is what vLLM's servers give as `routed_experts`: the bytes of
// a NumPy .npy file (uint8 or uint16, shape [tokens, MoE layers, top_k]) in base64:
//
//   numpy.load(io.BytesIO(base64.b64decode(text)))
//
// As in vLLM, a sequence of T tokens has T - 1 records: the last token that was drawn has not been run.
// Formats: vLLM, vllm/entrypoints/openai/completion/protocol.py; numpy.org/doc/stable/reference/generated/numpy.lib.format.html.

#include <cstddef>
#include <cstdint>
#include <string>

#include <moxie/core/concat.hpp>
#include <moxie/io/base64.hpp>
#include <moxie/moe/routing_trace.hpp>

namespace moxie::grpo {

/// The experts of the tokens of a sequence that were run.
class RoutingRecord {
 public:
  RoutingRecord() = default;
  explicit RoutingRecord(const RoutingTrace& trace)
      : tokens_(trace.tokens()), layers_(trace.n_layers()), top_k_(trace.top_k()), n_experts_(trace.n_experts()) {
    bytes_.reserve(static_cast<std::size_t>(tokens_ * layers_ * top_k_ * id_bytes()));
    for (Index t = 0; t < tokens_; ++t)
      for (Index l = 0; l < layers_; ++l)
        for (Index k = 0; k < top_k_; ++k) {
          const auto id = static_cast<std::uint32_t>(trace.ids(l)(t, k));
          bytes_ += static_cast<char>(id & 0xffu);
          if (id_bytes() == 2) bytes_ += static_cast<char>(id >> 8 & 0xffu);
        }
  }

  Index tokens() const noexcept { return tokens_; }
  std::size_t bytes() const noexcept { return bytes_.size(); }
  std::int32_t id(Index token, Index layer, Index slot) const {
    const auto at = static_cast<std::size_t>(((token * layers_ + layer) * top_k_ + slot) * id_bytes());
    const auto byte = [&](std::size_t i) { return static_cast<std::int32_t>(static_cast<std::uint8_t>(bytes_[i])); };
    return id_bytes() == 2 ? byte(at) | byte(at + 1) << 8 : byte(at);
  }

  /// The record as a trace to replay for a sequence of `tokens` tokens; the router chooses for those that were not run. Throws
  /// ArgumentError when the record has more.
  RoutingTrace trace(Index tokens) const {
    RoutingTrace trace(layers_, n_experts_, top_k_);
    if (tokens < tokens_)
      throw ArgumentError({{}, "routing record", {}}, concat("has ", tokens_, " tokens, the sequence only ", tokens));
    trace.resize(tokens);
    for (Index l = 0; l < layers_; ++l)
      for (Index t = 0; t < tokens; ++t)
        for (Index k = 0; k < top_k_; ++k) trace.ids(l)(t, k) = t < tokens_ ? id(t, l, k) : router_chooses;
    return trace;
  }

  /// The text described above.
  std::string text() const {
    std::string header = concat("{'descr': '", (id_bytes() == 2 ? "<u2" : "|u1"), "', 'fortran_order': False, 'shape': (",
                                tokens_, ", ", layers_, ", ", top_k_, "), }");
    header.append(63 - (10 + header.size()) % 64, ' ');  // the data begins at a multiple of 64 bytes
    header += '\n';
    std::string file("\x93NUMPY\x01\x00", 8);
    file += static_cast<char>(header.size() & 0xffu);
    file += static_cast<char>(header.size() >> 8);
    return to_base64(file + header + bytes_);
  }

 private:
  Index id_bytes() const noexcept { return n_experts_ > 256 ? 2 : 1; }

  Index tokens_ = 0, layers_ = 0, top_k_ = 0, n_experts_ = 0;
  std::string bytes_;
};

}  // namespace moxie::grpo
