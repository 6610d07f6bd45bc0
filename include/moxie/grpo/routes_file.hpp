#pragma once
// Recorded experts of a sequence, as they stand in files: read and checked against the model that shall replay them.
//
//   "routed_experts"   base64 of a .npy file [tokens, MoE layers, top_k] of integers, as moxie rollout and vLLM write it
//                      (routing_record.hpp), or the same as nested lists
//   "routes"           nested lists [MoE layers][tokens][top_k], as moxie score --routes writes it
//
// A sequence of T tokens has T tokens of them, or T - 1 where the last one was never run: the router chooses for that one. Ids
// that are all -1 (vLLM: the token was not run by that request) leave the choice to the router too.

#include <charconv>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/io/base64.hpp>
#include <moxie/moe/routing_trace.hpp>

namespace moxie::grpo {

namespace detail {

/// What to replay with, filled id by id.
class RoutesReader {
 public:
  RoutesReader(const RoutingTrace& model, Index sequence_tokens)
      : trace_(model.n_layers(), model.n_experts(), model.top_k()), needed_(sequence_tokens) {}

  void set_shape(Index tokens, Index layers, Index top_k) {
    need("MoE layers", layers, trace_.n_layers());
    need("experts per token", top_k, trace_.top_k());
    if (tokens != needed_ && tokens + 1 != needed_)
      throw FormatError(concat("the routes are of ", tokens, " tokens, the sequence has ", needed_,
                               ": they are another sequence's, or cut off"));
    trace_.resize(needed_);
    for (Index l = 0; l < trace_.n_layers(); ++l) trace_.ids(l).bottomRows(needed_ - tokens).setConstant(router_chooses);
  }
  void set(Index token, Index layer, Index slot, std::int64_t id) {
    auto ids = trace_.ids(layer);
    const auto bad = [&](const std::string& what) {
      throw FormatError(concat("the routes of token ", token, " in MoE layer ", layer, ": ", what));
    };
    if (id < router_chooses || id >= trace_.n_experts())
      bad(concat("expert ", id, " does not exist, the model has experts 0 to ", trace_.n_experts() - 1));
    for (Index k = 0; k < slot; ++k) {
      if ((ids(token, k) == router_chooses) != (id == router_chooses)) bad("some ids are -1, but not all");
      if (ids(token, k) == id && id != router_chooses) bad(concat("expert ", id, " occurs twice"));
    }
    ids(token, slot) = static_cast<std::int32_t>(id);
  }
  RoutingTrace take() { return std::move(trace_); }

 private:
  static void need(const char* what, Index has, Index needed) {
    if (has != needed)
      throw FormatError(concat("the routes have ", has, " ", what, ", the model has ", needed, ": they are another model's"));
  }
  RoutingTrace trace_;
  Index needed_;
};

/// Nested lists with `f(outer, middle, inner, id)`; all lists of a depth must have the same length. Returns the three lengths.
template <class Shape, class F>
void read_nested(const nlohmann::json& lists, Shape&& shape, F&& f) {
  const auto bad = [] { throw FormatError("routes must be three levels of lists of expert ids, those of a level equally long"); };
  if (!lists.is_array()) bad();
  const std::size_t n = lists.size();
  const std::size_t m = n > 0 && lists[0].is_array() ? lists[0].size() : 0;
  const std::size_t k = m > 0 && lists[0][0].is_array() ? lists[0][0].size() : 0;
  shape(static_cast<Index>(n), static_cast<Index>(m), static_cast<Index>(k));
  for (std::size_t a = 0; a < n; ++a) {
    if (!lists[a].is_array() || lists[a].size() != m) bad();
    for (std::size_t b = 0; b < m; ++b) {
      if (!lists[a][b].is_array() || lists[a][b].size() != k) bad();
      for (std::size_t c = 0; c < k; ++c) {
        if (!lists[a][b][c].is_number_integer()) bad();
        const nlohmann::json& id = lists[a][b][c];
        f(static_cast<Index>(a), static_cast<Index>(b), static_cast<Index>(c),
          id.is_number_unsigned() ? static_cast<std::int64_t>(std::min<std::uint64_t>(id.get<std::uint64_t>(), INT32_MAX))
                                  : std::max<std::int64_t>(id.get<std::int64_t>(), INT32_MIN));
      }
    }
  }
}

/// The array of a .npy file: shape of three sizes and integers of 1 to 8 bytes, little-endian.
struct NpyIntegers {
  Index shape[3];
  std::size_t id_bytes;
  bool is_signed;
  std::string_view data;

  explicit NpyIntegers(std::string_view file) {
    const auto need = [](bool holds, const char* message) {
      if (!holds) throw FormatError(std::string("routed_experts: ") + message);
    };
    need(file.size() >= 10 && file.starts_with("\x93NUMPY"), "the base64 text holds no .npy file");
    const auto byte = [&](std::size_t i) { return static_cast<std::size_t>(static_cast<std::uint8_t>(file[i])); };
    const std::size_t begin = byte(6) == 1 ? 10 : 12;
    need(byte(6) >= 1 && byte(6) <= 3 && file.size() >= begin, "the .npy file has a version that is not 1 to 3");
    const std::size_t length = byte(8) | byte(9) << 8 | (begin == 12 ? byte(10) << 16 | byte(11) << 24 : 0);
    need(length <= file.size() - begin, "the .npy file is cut off in its header");
    const std::string_view header = file.substr(begin, length);
    data = file.substr(begin + length);
    const auto after = [&](std::string_view key) {
      const std::size_t at = header.find(key);
      need(at != header.npos, "the .npy file's header lacks descr, fortran_order or shape");
      return header.substr(at + key.size());
    };
    const std::string_view type = after("'descr': '").substr(0, 4);
    need(type.size() == 4 && (type[0] == '<' || type[0] == '|') && (type[1] == 'u' || type[1] == 'i') && type[3] == '\'' &&
             std::strchr("1248", type[2]) != nullptr,
         "the .npy file's type must be whole numbers, little-endian");
    id_bytes = static_cast<std::size_t>(type[2] - '0');
    is_signed = type[1] == 'i';
    need(after("'fortran_order': ").starts_with("False"), "the .npy file must be in C order");
    std::string_view sizes = after("'shape': (");
    std::size_t total = id_bytes;
    for (Index& size : shape) {
      while (sizes.starts_with(' ') || sizes.starts_with(',')) sizes.remove_prefix(1);
      const auto [end, error] = std::from_chars(sizes.data(), sizes.data() + sizes.size(), size);
      need(error == std::errc() && size >= 0 && size <= (Index{1} << 31),
           "the .npy file's shape must be [tokens, MoE layers, top_k]");
      sizes.remove_prefix(static_cast<std::size_t>(end - sizes.data()));
      need(size == 0 || total <= (std::size_t{1} << 40) / static_cast<std::size_t>(size), "the .npy file's shape is too large");
      total *= static_cast<std::size_t>(size);
    }
    while (sizes.starts_with(' ') || sizes.starts_with(',')) sizes.remove_prefix(1);
    need(sizes.starts_with(')'), "the .npy file's shape must be [tokens, MoE layers, top_k]");
    need(data.size() == total, "the .npy file's data do not fit its shape: it is cut off");
  }

  std::int64_t operator[](std::size_t i) const {
    std::uint64_t value = 0;
    for (std::size_t b = id_bytes; b-- > 0;) value = value << 8 | static_cast<std::uint8_t>(data[i * id_bytes + b]);
    if (is_signed && id_bytes < 8 && (value >> (8 * id_bytes - 1)) != 0) value -= std::uint64_t{1} << 8 * id_bytes;
    return static_cast<std::int64_t>(value);
  }
};

}  // namespace detail

/// True when the line of a file has routes.
inline bool has_routes(const nlohmann::json& line) { return line.contains("routed_experts") || line.contains("routes"); }

/// The routes of a line as a trace to replay in a model with the sizes of `model` (empty_trace) for a sequence of `tokens`
/// tokens. Throws FormatError that says what does not fit.
inline RoutingTrace read_routes(const nlohmann::json& line, const RoutingTrace& model, Index tokens) {
  detail::RoutesReader reader(model, tokens);
  if (line.contains("routed_experts")) {
    const nlohmann::json& routes = line["routed_experts"];
    if (routes.is_string()) {
      const std::string file = from_base64(routes.get_ref<const std::string&>());
      const detail::NpyIntegers array(file);
      reader.set_shape(array.shape[0], array.shape[1], array.shape[2]);
      std::size_t i = 0;
      for (Index t = 0; t < array.shape[0]; ++t)
        for (Index l = 0; l < array.shape[1]; ++l)
          for (Index k = 0; k < array.shape[2]; ++k) reader.set(t, l, k, array[i++]);
    } else {
      detail::read_nested(
          routes,
          [&](Index t, Index l, Index k) {
            t == 0 ? reader.set_shape(0, model.n_layers(), model.top_k()) : reader.set_shape(t, l, k);
          },
          [&](Index t, Index l, Index k, std::int64_t id) { reader.set(t, l, k, id); });
    }
  } else if (line.contains("routes")) {
    detail::read_nested(
        line["routes"], [&](Index l, Index t, Index k) { reader.set_shape(t, l, t == 0 ? model.top_k() : k); },
        [&](Index l, Index t, Index k, std::int64_t id) { reader.set(t, l, k, id); });
  } else {
    throw FormatError("has no \"routed_experts\"; moxie rollout --routes writes them");
  }
  return reader.take();
}

}  // namespace moxie::grpo
