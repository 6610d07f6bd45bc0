#pragma once
// AdamW for small sets of matrices, and clipping of gradients by their global norm, as PyTorch's torch.optim.AdamW and
// torch.nn.utils.clip_grad_norm_ compute them. For parameter x with gradient g, at step t = 1, 2, ..:
//
//   x <- x (1 - lr lambda)                                    decoupled weight decay
//   m <- beta1 m + (1 - beta1) g      v <- beta2 v + (1 - beta2) g^2
//   x <- x - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + epsilon)
//
// Adam: Kingma and Ba, arXiv 1412.6980; decoupled decay: Loshchilov and Hutter, arXiv 1711.05101. Parameters and moments are
// stored in float, an element's step is computed in double; the order of operations is fixed, so a run that goes on from a saved
// state gives the same bits.

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include <moxie/core/concat.hpp>
#include <moxie/core/error.hpp>
#include <moxie/core/matrix.hpp>
#include <moxie/grpo/option_names.hpp>

namespace moxie::grpo {

/// Names as in torch.optim.AdamW, where "beta1", "beta2" are `betas` and "epsilon" is `eps`.
struct AdamOptions {
  double learning_rate = 1e-3;  ///< lr
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.0;  ///< lambda; 0: Adam
};

/// Throws ArgumentError for a value outside its range.
inline void check(const AdamOptions& o) {
  const auto positive = [](double value) { return std::isfinite(value) && value > 0.0; };
  check_option(std::isfinite(o.learning_rate) && o.learning_rate >= 0.0, "learning_rate", o.learning_rate, "0 or more");
  check_option(o.beta1 >= 0.0 && o.beta1 < 1.0, "beta1", o.beta1, "at least 0 and below 1");
  check_option(o.beta2 >= 0.0 && o.beta2 < 1.0, "beta2", o.beta2, "at least 0 and below 1");
  check_option(positive(o.epsilon), "epsilon", o.epsilon, "above 0");
  check_option(std::isfinite(o.weight_decay) && o.weight_decay >= 0.0, "weight_decay", o.weight_decay, "0 or more");
}

/// Sum of the squares of all elements, in double.
inline double sum_of_squares(const RowMatrix& matrix) {
  double sum = 0.0;
  for (Index i = 0; i < matrix.size(); ++i) sum += static_cast<double>(matrix.data()[i]) * static_cast<double>(matrix.data()[i]);
  return sum;
}

/// Multiplies all gradients by min(1, max_norm / (norm + 1e-6)), norm being that of all their elements together, which is
/// returned.
inline double clip_by_global_norm(std::initializer_list<RowMatrix*> gradients, double max_norm) {
  check_option(max_norm > 0.0, "max_grad_norm", max_norm, "above 0");
  double sum = 0.0;
  for (const RowMatrix* gradient : gradients) sum += sum_of_squares(*gradient);
  const double norm = std::sqrt(sum), factor = max_norm / (norm + 1e-6);
  if (factor < 1.0)
    for (RowMatrix* gradient : gradients) *gradient *= static_cast<float>(factor);
  return norm;
}

/// What Adam remembers of a parameter, in its shape.
struct AdamMoments {
  RowMatrix first;   ///< m
  RowMatrix second;  ///< v
};

/// What a checkpoint keeps of the optimizer.
struct AdamState {
  std::int64_t steps = 0;            ///< t
  std::vector<AdamMoments> moments;  ///< of each parameter, in the order in which step() is given them; none before the first
};

/// The optimizer of a fixed list of matrices, with the formula above.
class Adam {
 public:
  struct Parameter {
    RowMatrix& value;
    const RowMatrix& gradient;
  };

  /// `state`: of a run to go on with. Throws ArgumentError for options out of their range.
  explicit Adam(const AdamOptions& options = {}, AdamState state = {}) : options_(options), state_(std::move(state)) {
    check(options_);
  }

  const AdamOptions& options() const noexcept { return options_; }
  const AdamState& state() const noexcept { return state_; }

  /// Changes all parameters, always the same ones in the same order, with learning rate `scale` times that of the options (a
  /// schedule). Throws ArgumentError, and changes nothing, where shapes differ from the gradient's or the state's, or a gradient
  /// is not finite.
  void step(std::initializer_list<Parameter> parameters, double scale = 1.0) {
    check_parameters(parameters);
    if (state_.moments.empty())
      for (const Parameter& p : parameters)
        state_.moments.push_back(
            {RowMatrix::Zero(p.value.rows(), p.value.cols()), RowMatrix::Zero(p.value.rows(), p.value.cols())});
    ++state_.steps;
    const double t = static_cast<double>(state_.steps), rate = options_.learning_rate * scale;
    const double correction1 = 1.0 - std::pow(options_.beta1, t), correction2 = 1.0 - std::pow(options_.beta2, t);
    auto moments = state_.moments.begin();
    for (const Parameter& p : parameters) {
      for (Index i = 0; i < p.value.size(); ++i) {
        const auto g = static_cast<double>(p.gradient.data()[i]);
        float& first = moments->first.data()[i];
        float& second = moments->second.data()[i];
        float& value = p.value.data()[i];
        const double m = options_.beta1 * static_cast<double>(first) + (1.0 - options_.beta1) * g;
        const double v = options_.beta2 * static_cast<double>(second) + (1.0 - options_.beta2) * g * g;
        const double decayed = static_cast<double>(value) * (1.0 - rate * options_.weight_decay);
        value = static_cast<float>(decayed - rate / correction1 * m / (std::sqrt(v / correction2) + options_.epsilon));
        first = static_cast<float>(m);
        second = static_cast<float>(v);
      }
      ++moments;
    }
  }

 private:
  void check_parameters(std::initializer_list<Parameter> parameters) const {
    const auto shape = [](const RowMatrix& m) { return concat("[", m.rows(), ", ", m.cols(), "]"); };
    const auto same = [](const RowMatrix& a, const RowMatrix& b) { return a.rows() == b.rows() && a.cols() == b.cols(); };
    if (!state_.moments.empty() && state_.moments.size() != parameters.size())
      throw ArgumentError(
          concat("Adam's state is of ", state_.moments.size(), " parameters, ", parameters.size(), " were given"));
    std::size_t at = 0;
    for (const Parameter& p : parameters) {
      const std::string name = concat("parameter ", at);
      if (!same(p.value, p.gradient))
        throw ArgumentError(concat(name, " is ", shape(p.value), ", its gradient ", shape(p.gradient)));
      if (!state_.moments.empty() && !(same(p.value, state_.moments[at].first) && same(p.value, state_.moments[at].second)))
        throw ArgumentError(concat(name, " is ", shape(p.value), ", its moments in Adam's state are ",
                                   shape(state_.moments[at].first), " and ", shape(state_.moments[at].second)));
      if (!p.gradient.allFinite()) throw ArgumentError(concat("the gradient of ", name, " is not finite"));
      ++at;
    }
  }

  AdamOptions options_;
  AdamState state_;
};

}  // namespace moxie::grpo
