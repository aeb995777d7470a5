#include "core/json.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/file.h"

namespace fovea {
namespace {

// Builds a document from the events of nlohmann's SAX parser. Its own builder looks each key up in
// the keys before it, which takes minutes for an object of a million keys; here they are appended
// and looked through once, when the object ends.
class Builder {
 public:
  Builder(const std::string& where, JsonLimits limits) : where_(where), limits_(limits) {}

  Json take() { return std::move(root_); }

  bool null() { return place(nullptr); }
  bool boolean(bool value) { return place(value); }
  bool number_integer(int64_t value) { return place(value); }
  bool number_unsigned(uint64_t value) { return place(value); }
  bool number_float(double value, const std::string&) { return place(value); }
  bool string(std::string& value) { return place(std::move(value)); }
  bool binary(Json::binary_t&) { return false; }  // never in text

  bool key(std::string& name) {
    open_.back()->get_ref<Json::object_t&>().emplace_back(std::move(name), nullptr);
    return true;
  }

  bool start_object(size_t) { return open(Json::object()); }
  bool start_array(size_t) { return open(Json::array()); }
  bool end_array() { return close(); }

  bool end_object() {
    std::vector<std::string_view> names;
    for (const auto& [name, value] : open_.back()->get_ref<const Json::object_t&>()) {
      names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) {
      throw Error(ErrorCode::bad_data, where_,
                  str("key '", printable(*twice, 200), "' appears twice"));
    }
    return close();
  }

  bool parse_error(size_t position, const std::string&, const Json::exception& error) {
    // 406: a number beyond the range of a double.
    throw Error(
        ErrorCode::bad_data, where_,
        str("malformed JSON at byte ", position, error.id == 406 ? ": number out of range" : ""));
  }

 private:
  bool place(Json value) {
    add(std::move(value));
    return true;
  }

  Json* add(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array()) {
      open_.back()->push_back(std::move(value));
      return &open_.back()->back();
    }
    auto& members = open_.back()->get_ref<Json::object_t&>();
    members.back().second = std::move(value);
    return &members.back().second;
  }

  bool open(Json container) {
    require(open_.size() < static_cast<size_t>(limits_.max_depth), ErrorCode::bad_data, where_,
            "JSON is nested deeper than ", limits_.max_depth);
    // Stays valid: nothing is added to the parent before this container ends.
    open_.push_back(add(std::move(container)));
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& where_;
  JsonLimits limits_;
  Json root_;
  std::vector<Json*> open_;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& where, JsonLimits limits) {
  require(text.size() <= limits.max_bytes, ErrorCode::resource, where, "has ", text.size(),
          " bytes of JSON, at most ", limits.max_bytes, " are read");
  // nlohmann's lexer takes a zero byte for the end of the text.
  const size_t zero = text.find('\0');
  require(zero == std::string_view::npos, ErrorCode::bad_data, where, "malformed JSON at byte ",
          zero, ": a zero byte");
  Builder builder(where, limits);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

Json read_json(const std::filesystem::path& path, JsonLimits limits) {
  return parse_json(read_file(path, limits.max_bytes), path.string(), limits);
}

}  // namespace fovea
