#pragma once
// The state of a training run as one safetensors file, from which it goes on with the same bits: adapter, optimizer, and what the
// caller adds.
//
//   tensors   adapter.a [rank, hidden], adapter.b [vocab, rank]; adam.N.first, adam.N.second: moments of the N-th parameter; F32
//   metadata  format = "moxie-training-state"; scale, the adapter's; adam_steps; progress, the caller's text
//
// The file replaces an older one only when it is complete: a run that is killed finds either.

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <system_error>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/grpo/adam.hpp>
#include <moxie/io/in_quotes.hpp>
#include <moxie/io/safetensors.hpp>
#include <moxie/io/safetensors_writer.hpp>
#include <moxie/model/output_adapter.hpp>

namespace moxie::grpo {

/// What load_training_state() gives back.
struct TrainingState {
  OutputAdapter adapter;  ///< call pack() after loading
  AdamState optimizer;
  std::string progress;  ///< of the caller, e.g. JSON
};

namespace detail {

inline constexpr const char* training_state_format = "moxie-training-state";

inline std::string shortest(float value) {
  char digits[32];
  return std::string(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
}

inline const std::string& state_entry(const SafetensorsFile& file, const char* key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end())
    throw FormatError({file.path(), concat("metadata '", key, "'"), {}}, "is missing; this is no training state");
  return found->second;
}

template <class Number>
Number state_number(const SafetensorsFile& file, const char* key) {
  const std::string& text = state_entry(file, key);
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    throw FormatError({file.path(), concat("metadata '", key, "'"), {}}, concat("must be a number, is ", in_quotes(text)));
  return value;
}

inline RowMatrix state_matrix(const SafetensorsFile& file, const std::string& name) {
  const TensorView* view = file.tensors().find(name);
  if (!view) throw FormatError({file.path(), concat("tensor '", name, "'"), {}}, "is missing; this is no training state");
  if (view->dtype != Dtype::F32 || view->shape.size() != 2) throw FormatError(view->place(), "must be an F32 matrix");
  RowMatrix values(view->shape[0], view->shape[1]);
  if (view->bytes > 0) std::memcpy(values.data(), view->data, view->bytes);
  if (!values.allFinite()) throw FormatError(view->place(), "holds numbers that are not finite");
  return values;
}

}  // namespace detail

/// Throws SystemError.
inline void save_training_state(const std::string& path, const OutputAdapter& adapter, const AdamState& optimizer,
                                const std::string& progress) {
  SafetensorsWriter writer;
  writer.add("adapter.a", adapter.a);
  writer.add("adapter.b", adapter.b);
  for (std::size_t i = 0; i < optimizer.moments.size(); ++i) {
    writer.add(concat("adam.", i, ".first"), optimizer.moments[i].first);
    writer.add(concat("adam.", i, ".second"), optimizer.moments[i].second);
  }
  writer.set_metadata("format", detail::training_state_format);
  writer.set_metadata("scale", detail::shortest(adapter.scale));
  writer.set_metadata("adam_steps", std::to_string(optimizer.steps));
  writer.set_metadata("progress", progress);
  writer.write(path);
}

/// Throws SystemError, FormatError.
inline TrainingState load_training_state(const std::string& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  if (detail::state_entry(file, "format") != detail::training_state_format)
    throw FormatError({path, "metadata 'format'", {}}, concat("must be ", in_quotes(detail::training_state_format)));
  TrainingState state;
  state.adapter.a = detail::state_matrix(file, "adapter.a");
  state.adapter.b = detail::state_matrix(file, "adapter.b");
  state.adapter.scale = detail::state_number<float>(file, "scale");
  state.optimizer.steps = detail::state_number<std::int64_t>(file, "adam_steps");
  if (!std::isfinite(state.adapter.scale)) throw FormatError({path, "metadata 'scale'", {}}, "must be finite");
  if (state.optimizer.steps < 0) throw FormatError({path, "metadata 'adam_steps'", {}}, "must be 0 or more");
  for (std::size_t i = 0; file.tensors().find(concat("adam.", i, ".first")); ++i)
    state.optimizer.moments.push_back(
        {detail::state_matrix(file, concat("adam.", i, ".first")), detail::state_matrix(file, concat("adam.", i, ".second"))});
  state.progress = detail::state_entry(file, "progress");
  return state;
}

}  // namespace moxie::grpo
