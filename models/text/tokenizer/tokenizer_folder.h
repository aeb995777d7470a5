#pragma once

#include <filesystem>
#include <string>

#include "models/text/tokenizer/tokenizer.h"

namespace fovea::models {

/// Reads a tokenizer's folder by the rules of transformers 5.23 (from_pretrained of T5Tokenizer and
/// of TokenizersBackend); arguments and errors as `Tokenizer::open`.
TokenizerParts read_tokenizer_folder(const std::filesystem::path& folder,
                                     const std::string& class_name);

}  // namespace fovea::models
