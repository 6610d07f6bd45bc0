#pragma once
// A JSON value that is freed branch by branch.
//
// nlohmann_json's destructor moves all elements of an array to a stack that grows by doubling, so freeing an array of n values
// needs up to 48 n bytes more. Clearing the arrays first, from the inside out, needs nothing.

#include <nlohmann/json.hpp>
#include <utility>

namespace moxie {

class JsonTree {
 public:
  nlohmann::json value;

  JsonTree() = default;
  explicit JsonTree(nlohmann::json v) : value(std::move(v)) {}
  JsonTree(const JsonTree&) = default;
  JsonTree(JsonTree&&) = default;
  JsonTree& operator=(JsonTree other) noexcept {
    value.swap(other.value);
    return *this;
  }
  ~JsonTree() { clear(value); }

 private:
  static void clear(nlohmann::json& v) noexcept {
    if (auto* array = v.get_ptr<nlohmann::json::array_t*>()) {
      for (nlohmann::json& element : *array) clear(element);
      array->clear();
    } else if (auto* object = v.get_ptr<nlohmann::json::object_t*>()) {
      for (auto& [key, element] : *object) clear(element);
      object->clear();
    }
  }
};

}  // namespace moxie
